// Row-major float32 arrays with a shape, and the few products and sums that the network is made of.

export class Tensor {
  constructor(shape, data = new Float32Array(shape.reduce((a, b) => a * b, 1))) {
    this.shape = shape;
    this.data = data;
  }

  /** The last dimension. */
  get width() {
    return this.shape[this.shape.length - 1];
  }

  /** All dimensions but the last, multiplied. */
  get rows() {
    return this.data.length / this.width;
  }

  row(index) {
    return this.data.subarray(index * this.width, (index + 1) * this.width);
  }

  /** The same numbers in another shape. */
  reshape(...shape) {
    return new Tensor(shape, this.data);
  }

  /** Some entries of the first dimension, without a copy. */
  slice(start, end) {
    const size = this.data.length / this.shape[0];
    return new Tensor(
      [end - start, ...this.shape.slice(1)],
      this.data.subarray(start * size, end * size),
    );
  }
}

/** Tensors one after the other along the first dimension. */
export function concatenate(tensors) {
  const length = tensors.reduce((sum, one) => sum + one.shape[0], 0);
  const joined = new Tensor([length, ...tensors[0].shape.slice(1)]);
  let place = 0;
  for (const one of tensors) {
    joined.data.set(one.data, place);
    place += one.data.length;
  }
  return joined;
}

/**
 * x (..., in), weight (out, in), bias (out) or null -> (..., out).
 *
 * Two rows of x meet four rows of the weight at a time: eight sums stay in the processor's
 * registers, and each number that is loaded is used several times. Sums are of 64 bits. To take
 * numbers apart in lists would be shorter, and slower by half.
 */
export function linear(x, weight, bias = null) {
  const M = x.rows;
  const K = x.width;
  const N = weight.shape[0];
  const y = new Tensor([...x.shape.slice(0, -1), N]); // (..., out)
  const [a, w, out] = [x.data, weight.data, y.data];
  const [evenM, fourthN] = [M - (M % 2), N - (N % 4)];
  for (let n = 0; n < fourthN; n += 4) {
    const w0 = n * K;
    const [w1, w2, w3] = [w0 + K, w0 + 2 * K, w0 + 3 * K];
    for (let m = 0; m < evenM; m += 2) {
      const [x0, x1] = [m * K, m * K + K];
      let s00 = 0;
      let s01 = 0;
      let s02 = 0;
      let s03 = 0;
      let s10 = 0;
      let s11 = 0;
      let s12 = 0;
      let s13 = 0;
      for (let k = 0; k < K; k++) {
        const p = a[x0 + k];
        const q = a[x1 + k];
        let v = w[w0 + k];
        s00 += p * v;
        s10 += q * v;
        v = w[w1 + k];
        s01 += p * v;
        s11 += q * v;
        v = w[w2 + k];
        s02 += p * v;
        s12 += q * v;
        v = w[w3 + k];
        s03 += p * v;
        s13 += q * v;
      }
      const o = m * N + n;
      out[o] = s00;
      out[o + 1] = s01;
      out[o + 2] = s02;
      out[o + 3] = s03;
      out[o + N] = s10;
      out[o + N + 1] = s11;
      out[o + N + 2] = s12;
      out[o + N + 3] = s13;
    }
  }
  for (let m = 0; m < M; m++) {
    for (let n = m < evenM ? fourthN : 0; n < N; n++) {
      out[m * N + n] = dot(a, m * K, w, n * K, K);
    }
  }
  if (bias !== null) {
    for (let m = 0; m < M; m++) {
      for (let n = 0; n < N; n++) out[m * N + n] += bias.data[n];
    }
  }
  return y;
}

/**
 * The sum of K products of two arrays, each from its own place on.
 *
 * In four sums that do not wait for each other.
 */
export function dot(a, aStart, b, bStart, K) {
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  const fourthK = K - (K % 4);
  for (let k = 0; k < fourthK; k += 4) {
    s0 += a[aStart + k] * b[bStart + k];
    s1 += a[aStart + k + 1] * b[bStart + k + 1];
    s2 += a[aStart + k + 2] * b[bStart + k + 2];
    s3 += a[aStart + k + 3] * b[bStart + k + 3];
  }
  for (let k = fourthK; k < K; k++) s0 += a[aStart + k] * b[bStart + k];
  return s0 + s1 + (s2 + s3);
}

/**
 * Adds to `width` numbers of `out` those of the rows of `values`, each times its share.
 *
 * Four rows at a time, so that `out` is loaded and stored a fourth as often.
 */
export function addRows(out, outStart, shares, values, valuesStart, width, step = width) {
  const fourth = shares.length - (shares.length % 4);
  for (let i = 0; i < fourth; i += 4) {
    const v0 = valuesStart + i * step;
    const [v1, v2, v3] = [v0 + step, v0 + 2 * step, v0 + 3 * step];
    const [p0, p1, p2, p3] = [shares[i], shares[i + 1], shares[i + 2], shares[i + 3]];
    for (let d = 0; d < width; d++) {
      const first = p0 * values[v0 + d] + p1 * values[v1 + d];
      out[outStart + d] += first + p2 * values[v2 + d] + p3 * values[v3 + d];
    }
  }
  for (let i = fourth; i < shares.length; i++) {
    const [share, place] = [shares[i], valuesStart + i * step];
    for (let d = 0; d < width; d++) out[outStart + d] += share * values[place + d];
  }
}

/** (..., D) + (..., D) -> (..., D); the second repeats where it has fewer rows. */
export function add(x, y) {
  const sum = new Tensor(x.shape);
  const length = y.data.length;
  for (let i = 0; i < sum.data.length; i++) sum.data[i] = x.data[i] + y.data[i % length];
  return sum;
}

/** Each number through a function. */
export function map(x, f) {
  const y = new Tensor(x.shape);
  for (let i = 0; i < y.data.length; i++) y.data[i] = f(x.data[i]);
  return y;
}

export function silu(x) {
  return x / (1 + Math.exp(-x));
}

/** x * the normal distribution's share below x, not approximated. */
export function gelu(x) {
  return 0.5 * x * (1 + errorFunction(x / Math.SQRT2));
}

/** The approximation of SigLIP. */
export function tanhGelu(x) {
  return 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
}

/** By the series with positive terms alone, exact far below float32's rounding. */
function errorFunction(x) {
  if (Math.abs(x) > 4.5) return Math.sign(x);
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > 1e-12; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/** Numbers, -Infinity among them, -> shares that add up to 1, in place. */
export function softmax(values) {
  let largest = -Infinity;
  for (const value of values) if (value > largest) largest = value;
  let sum = 0;
  for (let i = 0; i < values.length; i++) {
    const e = Math.exp(values[i] - largest);
    values[i] = e;
    sum += e;
  }
  for (let i = 0; i < values.length; i++) values[i] /= sum;
  return values;
}
