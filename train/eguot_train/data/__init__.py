"""What training draws from: crops of raws and photos, pseudo-raws, synthetic cameras and scenes."""
