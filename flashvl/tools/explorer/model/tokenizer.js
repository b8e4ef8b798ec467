// Qwen2's byte-level BPE, read from a tokenizer.json; text is never read as a control token.

// How Qwen2 cuts text before the merges. White space is Unicode's, which JavaScript's \s is not
// quite, and "ſ" is an s where case is ignored.
const PATTERN = new RegExp(
  "'(?:[rR][eE]|[vV][eE]|[lL][lL]|[sSſtTmMdD])" +
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+" +
    "|\\p{N}" +
    "| ?[^\\p{White_Space}\\p{L}\\p{N}]+[\\r\\n]*" +
    "|\\p{White_Space}*[\\r\\n]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})" +
    "|\\p{White_Space}+",
  "gu",
);

// Each byte as a letter that can be seen: those of Latin-1 as themselves, others from U+0100 on.
const LETTER_OF_BYTE = lettersOfBytes();
const BYTE_OF_LETTER = new Map(LETTER_OF_BYTE.map((letter, byte) => [letter, byte]));

export class Tokenizer {
  /** `definition` is the content of a tokenizer.json that Python's `Tokenizer` has accepted. */
  constructor(definition) {
    this.normalizes = definition.normalizer !== null;
    this.cuts = definition.pre_tokenizer.type === "Sequence";
    this.ids = new Map(Object.entries(definition.model.vocab));
    this.tokens = [];
    for (const [token, id] of this.ids) this.tokens[id] = token;
    const merges = definition.model.merges.map((pair) =>
      typeof pair === "string" ? pair.split(" ") : pair,
    );
    // A merge that is listed twice has the later rank, as in a map that is written over.
    this.ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
    this.control = new Map(definition.added_tokens.map(({ content, id }) => [content, id]));
    this.hidden = new Set(
      definition.added_tokens.filter(({ special }) => special).map(({ id }) => id),
    );
    for (const [content, id] of this.control) this.tokens[id] = content;
  }

  /** Ids of ordinary tokens, whatever the text says. */
  encode(text) {
    const normal = this.normalizes ? text.normalize("NFC") : text;
    const pieces = this.cuts ? (normal.match(PATTERN) ?? []) : normal === "" ? [] : [normal];
    return pieces.flatMap((piece) => this.merge(piece));
  }

  /** A piece's bytes, merged pair by pair: always the pair of the lowest rank, from the left. */
  merge(piece) {
    const parts = Array.from(new TextEncoder().encode(piece), (byte) => LETTER_OF_BYTE[byte]);
    while (parts.length > 1) {
      let [best, place] = [Infinity, -1];
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) break;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
    return parts.map((part) => this.ids.get(part));
  }

  /** Text of the ids without the special control tokens; broken characters become U+FFFD. */
  decode(ids) {
    const bytes = ids
      .filter((id) => !this.hidden.has(id) && this.tokens[id] !== undefined)
      .flatMap((id) => bytesOf(this.tokens[id]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes));
  }

  controlId(token) {
    if (!this.control.has(token)) throw new Error(`there is no control token ${token}`);
    return this.control.get(token);
  }

  /** The id of a control token, or null for text. */
  controlName(id) {
    for (const [content, known] of this.control) if (known === id) return content;
    return null;
  }
}

/** A token of other letters than bytes', such as an added one, stands for itself. */
function bytesOf(token) {
  const bytes = Array.from(token, (letter) => BYTE_OF_LETTER.get(letter));
  return bytes.includes(undefined) ? Array.from(new TextEncoder().encode(token)) : bytes;
}

function lettersOfBytes() {
  const seen = (byte) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(seen(byte) ? byte : next++));
}
