// The weights out of the bytes of a safetensors file, by the names of the Python modules.

import { Tensor } from "./tensor.js";

/** The tensors below a name, such as "decoder.layers.0". */
export class Weights {
  constructor(tensors, name = "", unread = new Set(tensors.keys())) {
    [this.tensors, this.name] = [tensors, name];
    this.unread = unread; // names that nobody has asked for yet
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
    const name = this.name === "" ? `${part}` : `${this.name}.${part}`;
    return new Weights(this.tensors, name, this.unread);
  }

  /** The tensor of a name. */
  get(part) {
    const found = this.find(part);
    if (found === null) throw new Error(`there are no weights ${this.at(part).name}`);
    return found;
  }

  /** The tensor of a name, or null. */
  find(part) {
    const { name } = this.at(part);
    this.unread.delete(name);
    return this.tensors.get(name) ?? null;
  }
}

/** bfloat16 is the upper half of float32. */
function widened(halves) {
  const bits = new Uint32Array(halves.length);
  for (let i = 0; i < bits.length; i++) bits[i] = halves[i] << 16;
  return new Float32Array(bits.buffer);
}
