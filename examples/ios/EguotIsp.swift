// An ISP file on iOS without Python: what README, "The ISP spec", asks of a program, in plain Swift.
//
// Bundle the .tflite and what `eguot-sdk inspect --json FILE` prints of it; fill `Spec` from the JSON's `spec` (`cameraColour`: its
// `color_input` is `camera`). Only int8 files are run here, and none whose spec says `global_context`, which must see the whole
// frame: others are refused. (An .mlpackage of `eguot-sdk convert --format coreml` takes the same planes as a multi-array; what
// it gives is not clipped to 0...1: do so before `UInt8(x * 255)`, which traps on less.)
// Was neither compiled nor run: no Swift compiler and no device were at hand. The same arithmetic in Kotlin
// (examples/android/EguotIsp.kt) is compiled and compared with the Python SDK by the tests; keep the two alike.
//
//     let interpreter = try Interpreter(modelPath: path)                                   // pod TensorFlowLiteSwift
//     let isp = EguotIsp(spec: spec) { input, height, width in
//         try interpreter.resizeInput(at: 0, to: [1, height, width, 4]); try interpreter.allocateTensors()
//         try interpreter.copy(Data(bytes: input, count: input.count), toInputAt: 0); try interpreter.invoke()
//         return try interpreter.output(at: 0).data.map { Int8(bitPattern: $0) }
//     }
//     let pixels = try isp.process(raw)                                                    // RGBA bytes
//
// AVCapturePhoto gives all of `Raw`: its pixelBuffer (kCVPixelFormatType_14Bayer_RGGB and the like, 16-bit words), and in
// its DNG metadata BlackLevel, WhiteLevel, AsShotNeutral (gains are 1 / neutral) and ColorMatrix or ForwardMatrix.

import Foundation

struct Tensor { let dtype: String; let scale: Double; let zeroPoint: Int }

struct Spec {
    let version: Int
    let globalContext: Bool
    let halo, tile, multiple, scaleFactor: Int
    let companding: Double
    let input, output: Tensor
    let cameraColour: Bool
}

/// Counts row by row; levels of R, Gr, Gb, B; gains of R, G, B; `matrix` row by row, balanced camera RGB to linear sRGB.
struct Raw {
    let counts: [UInt16]
    let height, width: Int
    let cfa: String
    let black, white, gains, matrix: [Double]
}

struct EguotIsp {
    let spec: Spec
    /// Input [side, side, 4] in, output [2 side, 2 side, 3] out.
    let run: (_ input: [Int8], _ height: Int, _ width: Int) throws -> [Int8]

    /// RGBA bytes of the frame as the sensor lies.
    func process(_ raw: Raw) throws -> [UInt8] {
        precondition(spec.version == 1, "a spec of another version")
        precondition(spec.input.dtype == "int8" && spec.output.dtype == "int8", "only int8 files")
        precondition(!spec.globalContext && spec.scaleFactor == 2, "only ISPs that can be tiled, of scale factor 2")
        let red = Array(raw.cfa).firstIndex(of: "R")!
        let (cropRow, cropCol) = (red / 2, red % 2)
        let ingest = Ingest(raw, spec, cropRow, cropCol)
        let rows = (raw.height + cropRow + 1) / 2, cols = (raw.width + cropCol + 1) / 2
        let core = spec.tile / spec.multiple * spec.multiple
        let side = core + 2 * spec.halo
        let to8: [UInt8] = (0..<256).map { code in
            let value = Double(Int(Int8(bitPattern: UInt8(code))) - spec.output.zeroPoint) * spec.output.scale
            return UInt8((min(max(value, 0), 1) * 255).rounded())
        }
        var input = [Int8](repeating: 0, count: side * side * 4)
        var pixels = [UInt8](repeating: 255, count: raw.height * raw.width * 4)
        for top in stride(from: 0, to: rows, by: core) {
            for left in stride(from: 0, to: cols, by: core) {
                ingest.fill(&input, top - spec.halo, left - spec.halo, side)
                let output = try run(input, side, side)
                for y in 0..<(2 * core) {
                    let row = 2 * top + y - cropRow
                    if row < 0 || row >= raw.height { continue }
                    for x in 0..<(2 * core) {
                        let col = 2 * left + x - cropCol
                        if col < 0 || col >= raw.width { continue }
                        let at = ((y + 2 * spec.halo) * 2 * side + x + 2 * spec.halo) * 3
                        for channel in 0..<3 {
                            let code = Int(UInt8(bitPattern: output[at + channel]))
                            pixels[(row * raw.width + col) * 4 + channel] = to8[code]
                        }
                    }
                }
            }
        }
        return pixels
    }
}

/// Mosaic to network input: black, white, balance, clip, matrix on the 2x2 cell, companding, int8.
struct Ingest {
    private let raw: Raw, spec: Spec, cropRow: Int, cropCol: Int
    private let linear: [[Double]]
    private let codes: [Int8]

    init(_ raw: Raw, _ spec: Spec, _ cropRow: Int, _ cropCol: Int) {
        (self.raw, self.spec, self.cropRow, self.cropCol) = (raw, spec, cropRow, cropCol)
        let low = raw.gains.min()!
        linear = (0..<4).map { plane in
            let gain = raw.gains[(plane + 1) / 2] / low  // planes R, Gr, Gb, B have the gains R, G, G, B
            return (0..<65536).map { count in
                min(max((Double(count) - raw.black[plane]) * gain / (raw.white[plane] - raw.black[plane]), 0), 1)
            }
        }
        codes = (0..<65536).map { step in
            let value = pow(Double(step) / 65535, spec.companding) / spec.input.scale + Double(spec.input.zeroPoint)
            return Int8(min(max(value.rounded(.toNearestOrEven), -128), 127))
        }
    }

    func fill(_ out: inout [Int8], _ top: Int, _ left: Int, _ side: Int) {
        let m = raw.matrix
        var next = 0
        func put(_ value: Double) {
            out[next] = codes[Int(min(max(value, 0), 1) * 65535 + 0.5)]
            next += 1
        }
        for y in top..<(top + side) {
            for x in left..<(left + side) {
                let r = at(0, 2 * y, 2 * x), gr = at(1, 2 * y, 2 * x + 1)
                let gb = at(2, 2 * y + 1, 2 * x), b = at(3, 2 * y + 1, 2 * x + 1)
                if spec.cameraColour {
                    put(r); put(gr); put(gb); put(b)
                } else {
                    let g = (gr + gb) / 2
                    put(m[0] * r + m[1] * g + m[2] * b)
                    put(m[3] * r + m[4] * gr + m[5] * b)  // each green keeps its own detail
                    put(m[3] * r + m[4] * gb + m[5] * b)
                    put(m[6] * r + m[7] * g + m[8] * b)
                }
            }
        }
    }

    /// Reflection-101 around the frame keeps the phase of the colours.
    private func at(_ plane: Int, _ row: Int, _ col: Int) -> Double {
        let y = reflect(row - cropRow, raw.height), x = reflect(col - cropCol, raw.width)
        return linear[plane][Int(raw.counts[y * raw.width + x])]
    }

    private func reflect(_ index: Int, _ size: Int) -> Int {
        let period = 2 * (size - 1)
        let inside = abs(index) % period
        return inside >= size ? period - inside : inside
    }
}
