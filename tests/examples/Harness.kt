// Runs EguotIsp.kt on a JVM over a stand-in for the network: cells spread over their 2x2 pixels. Numbers come as text.

import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File

fun main(arguments: Array<String>) {
    val raw = DataInputStream(File(arguments[0]).inputStream().buffered()).use { data ->
        val height = data.readInt()
        val width = data.readInt()
        val cfa = data.readUTF()
        val numbers = DoubleArray(20) { data.readDouble() }
        val counts = ShortArray(height * width) { data.readShort() }
        fun part(from: Int, to: Int) = numbers.copyOfRange(from, to)
        Raw(counts, height, width, cfa, part(0, 4), part(4, 8), part(8, 11), part(11, 20))
    }
    val tensor = Tensor("int8", 1.0 / 255, -128)
    val spec = Spec(1, false, 2, 16, 1, 2, 1 / 2.2, tensor, tensor, arguments[2] == "camera")
    val isp = EguotIsp(spec) { input, output, height, width ->
        for (y in 0 until 2 * height) for (x in 0 until 2 * width) {
            val cell = ((y / 2) * width + x / 2) * 4
            val green = input.get(cell + if (y % 2 == 0) 1 else 2)
            for (value in byteArrayOf(input.get(cell), green, input.get(cell + 3))) output.put(value)
        }
    }
    DataOutputStream(File(arguments[1]).outputStream().buffered()).use { out -> isp.process(raw).forEach(out::writeInt) }
}
