// An ISP file on Android without Python: what README, "The ISP spec", asks of a program, in plain Kotlin.
//
// Put the .tflite and what `eguot-sdk inspect --json FILE` prints of it into the assets, and make a `Spec` from the JSON
// (`spec` -> version, halo, tile, multiple, scale_factor, companding, input, output, color_input, global_context). Only
// int8 files are run here, and none whose spec says `global_context`, which must see the whole frame: others are refused.
// The arithmetic was compiled and run on a JVM against the Python SDK (tests/examples); it was not run on a phone.
//
//     val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(4))        // org.tensorflow.lite
//     val isp = EguotIsp(spec) { input, output, height, width ->
//         interpreter.resizeInput(0, intArrayOf(1, height, width, 4)); interpreter.run(input, output)
//     }
//     val pixels = isp.process(raw)                                                       // ARGB, for a Bitmap
//
// Camera2 gives all of `Raw`. Mind the orders (from its reference; not run on a phone):
//   counts  an Image of ImageFormat.RAW_SENSOR: rows of `rowStride` bytes, which may be more than 2 * width
//   cfa     SENSOR_INFO_COLOR_FILTER_ARRANGEMENT: 0 RGGB, 1 GRBG, 2 GBRG, 3 BGGR
//   black   SENSOR_BLACK_LEVEL_PATTERN (or SENSOR_DYNAMIC_BLACK_LEVEL) is by place: getOffsetForIndex(column, row) of the
//           2 x 2 cell; here by colour. With red at (y, x): R (y, x), Gr (y, 1 - x), Gb (1 - y, x), B (1 - y, 1 - x)
//   white   SENSOR_INFO_WHITE_LEVEL, four times
//   gains   COLOR_CORRECTION_GAINS is R, G even, G odd, B; here R, G (either of the two), B
//   matrix  M * F, row by row: F is SENSOR_FORWARD_MATRIX1 or 2 (balanced camera colours to XYZ under D50), M takes XYZ
//           under D50 to linear sRGB: 3.1339 -1.6169 -0.4906 / -0.9788 1.9161 0.0335 / 0.0719 -0.2290 1.4052

import java.nio.ByteBuffer
import java.nio.ByteOrder

class Tensor(val dtype: String, val scale: Double, val zeroPoint: Int)

class Spec(
    val version: Int, val globalContext: Boolean, val halo: Int, val tile: Int, val multiple: Int, val scaleFactor: Int, val companding: Double,
    val input: Tensor, val output: Tensor, val cameraColour: Boolean
)

/** Counts row by row; levels of R, Gr, Gb, B; gains of R, G, B; `matrix` row by row, balanced camera RGB to linear sRGB. */
class Raw(
    val counts: ShortArray, val height: Int, val width: Int, val cfa: String,
    val black: DoubleArray, val white: DoubleArray, val gains: DoubleArray, val matrix: DoubleArray
)

class EguotIsp(
    private val spec: Spec,
    private val run: (input: ByteBuffer, output: ByteBuffer, height: Int, width: Int) -> Unit
) {
    /** ARGB pixels of the frame as the sensor lies, height * width. */
    fun process(raw: Raw): IntArray {
        require(spec.version == 1) { "a spec of another version" }
        require(spec.input.dtype == "int8" && spec.output.dtype == "int8") { "only int8 files" }
        require(!spec.globalContext && spec.scaleFactor == 2) { "only ISPs that can be tiled, of scale factor 2" }
        val red = raw.cfa.indexOf('R')
        val (cropRow, cropCol) = Pair(red / 2, red % 2)
        val ingest = Ingest(raw, spec, cropRow, cropCol)
        val rows = (raw.height + cropRow + 1) / 2
        val cols = (raw.width + cropCol + 1) / 2
        val core = spec.tile / spec.multiple * spec.multiple
        val side = core + 2 * spec.halo
        val input = ByteBuffer.allocateDirect(side * side * 4).order(ByteOrder.nativeOrder())
        val output = ByteBuffer.allocateDirect(4 * side * side * 3).order(ByteOrder.nativeOrder())
        val to8 = IntArray(256) { code ->
            Math.round(((code.toByte() - spec.output.zeroPoint) * spec.output.scale).coerceIn(0.0, 1.0) * 255).toInt()
        }
        val pixels = IntArray(raw.height * raw.width)
        for (top in 0 until rows step core) for (left in 0 until cols step core) {
            ingest.fill(input, top - spec.halo, left - spec.halo, side)
            output.rewind()
            run(input, output, side, side)
            for (y in 0 until 2 * core) {
                val row = 2 * top + y - cropRow
                if (row < 0 || row >= raw.height) continue
                for (x in 0 until 2 * core) {
                    val col = 2 * left + x - cropCol
                    if (col < 0 || col >= raw.width) continue
                    val at = ((y + 2 * spec.halo) * 2 * side + x + 2 * spec.halo) * 3
                    val r = to8[output.get(at).toInt() and 255]
                    val g = to8[output.get(at + 1).toInt() and 255]
                    val b = to8[output.get(at + 2).toInt() and 255]
                    pixels[row * raw.width + col] = (255 shl 24) or (r shl 16) or (g shl 8) or b
                }
            }
        }
        return pixels
    }
}

/** Mosaic to network input: black, white, balance, clip, matrix on the 2x2 cell, companding, int8. */
class Ingest(private val raw: Raw, private val spec: Spec, private val cropRow: Int, private val cropCol: Int) {
    private val low = Math.min(raw.gains[0], Math.min(raw.gains[1], raw.gains[2]))
    private val linear = Array(4) { plane ->
        val gain = raw.gains[(plane + 1) / 2] / low // planes R, Gr, Gb, B have the gains R, G, G, B
        FloatArray(65536) { count ->
            ((count - raw.black[plane]) * gain / (raw.white[plane] - raw.black[plane])).coerceIn(0.0, 1.0).toFloat()
        }
    }
    private val codes = ByteArray(65536) { step ->
        val value = Math.pow(step / 65535.0, spec.companding) / spec.input.scale + spec.input.zeroPoint
        Math.rint(value).coerceIn(-128.0, 127.0).toInt().toByte()
    }

    fun fill(out: ByteBuffer, top: Int, left: Int, side: Int) {
        out.rewind()
        val m = raw.matrix
        for (y in top until top + side) for (x in left until left + side) {
            val r = at(0, 2 * y, 2 * x)
            val gr = at(1, 2 * y, 2 * x + 1)
            val gb = at(2, 2 * y + 1, 2 * x)
            val b = at(3, 2 * y + 1, 2 * x + 1)
            if (spec.cameraColour) {
                put(out, r); put(out, gr); put(out, gb); put(out, b)
            } else {
                val g = (gr + gb) / 2
                put(out, m[0] * r + m[1] * g + m[2] * b)
                put(out, m[3] * r + m[4] * gr + m[5] * b) // each green keeps its own detail
                put(out, m[3] * r + m[4] * gb + m[5] * b)
                put(out, m[6] * r + m[7] * g + m[8] * b)
            }
        }
        out.rewind()
    }

    private fun put(out: ByteBuffer, value: Double) {
        out.put(codes[(value.coerceIn(0.0, 1.0) * 65535 + 0.5).toInt()])
    }

    /** Reflection-101 around the frame keeps the phase of the colours. */
    private fun at(plane: Int, row: Int, col: Int): Double {
        val y = reflect(row - cropRow, raw.height)
        val x = reflect(col - cropCol, raw.width)
        return linear[plane][raw.counts[y * raw.width + x].toInt() and 0xFFFF].toDouble()
    }

    private fun reflect(index: Int, size: Int): Int {
        val period = 2 * (size - 1)
        val inside = Math.abs(index) % period
        return if (inside >= size) period - inside else inside
    }
}
