// The weights out of the bytes of a safetensors file, by the names of the Python modules.

import { Tensor } from "./tensor.js";

/** The tensors below a name, such as "decoder.layers.0". */
export class Weights {
  constructor(tensors, name = "") {
    this.tensors = tensors;
    this.name = name;
  }

  /** bytes (Uint8Array) of a safetensors file with bfloat16 and float32 numbers. */
  static fromBytes(bytes) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const start = 8 + Number(view.getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
    delete header.__metadata__;
    const tensors = new Map();
    for (const [
      name,
      {
        dtype,
        shape,
        data_offsets: [from, to],
      },
    ] of Object.entries(header)) {
      // A copy starts at an address that 16 and 32 bits may be read from.
      const copy = bytes.slice(start + from, start + to).buffer;
      if (dtype !== "BF16" && dtype !== "F32") throw new Error(`${name} has the dtype ${dtype}`);
      const data = dtype === "F32" ? new Float32Array(copy) : widened(new Uint16Array(copy));
      tensors.set(name, new Tensor(shape, data));
    }
    return new Weights(tensors);
  }

  at(part) {
    return new Weights(this.tensors, this.name === "" ? `${part}` : `${this.name}.${part}`);
  }

  /** The tensor of a name, or null. */
  get(part) {
    return this.tensors.get(this.at(part).name) ?? null;
  }
}

/** bfloat16 is the upper half of float32. */
function widened(halves) {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < bits.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}
