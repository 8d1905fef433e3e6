/** Codes in JavaScript: embeddings become codes in the graph of `crovca export --onnx`, and codes are searched here.
 *
 *   npm ci && node search.mjs graphs/embedding_to_codes.onnx items.bin queries.f32 10
 *
 * items.bin: packed codes, one after the other (`codes.packed.tofile`); queries.f32: embeddings (`array.tofile`).
 * The functions need no package but for the graph, and nothing that is Node.js's own.
 */

/** Embeddings, Float32Array of n * d, to packed codes (Uint8Array) and logits (Float32Array) of n queries. */
export async function encode(graph, embeddings) {
  const ort = await import("onnxruntime-web");
  const session = await ort.InferenceSession.create(graph);
  const width = session.inputMetadata[0].shape[1];
  const input = new ort.Tensor("float32", embeddings, [embeddings.length / width, width]);
  const { codes, logits } = await session.run({ embeddings: input });
  return { codes: codes.data, logits: logits.data, bits: logits.dims[1] };
}

const ONES = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

/** How many bits of each item differ from the query's: Float64Array (n). */
export function hamming(query, items) {
  const bytes = query.length;
  const distances = new Float64Array(items.length / bytes);
  for (let at = 0; at < items.length; at++) distances[Math.floor(at / bytes)] += ONES[items[at] ^ query[at % bytes]];
  return distances;
}

/** sum_j |sigmoid(z_j) - y_j| of the query's logits z and each item's bits y: Float64Array (n), as float32 numbers.
 *
 * It is offset - (the sum of tanh(z_j / 2) where bit j is 1), so each byte of a code is one look into a table.
 */
export function asymmetric(logits, items) {
  const weights = Array.from(logits, (logit) => Math.fround(Math.tanh(logit / 2)));
  const offset = weights.reduce((sum, weight) => sum + (1 + weight) / 2, 0);
  const bytes = Math.ceil(weights.length / 8);
  const table = Float64Array.from({ length: bytes * 256 }, (_, place) => {
    const part = weights.slice((place >> 8) * 8, (place >> 8) * 8 + 8);
    return part.reduce((sum, weight, bit) => sum + (place & (128 >> bit) ? weight : 0), 0); // first bit: most significant
  });
  return Float64Array.from({ length: items.length / bytes }, (_, item) => {
    let sum = 0;
    for (let byte = 0; byte < bytes; byte++) sum += table[byte * 256 + items[item * bytes + byte]];
    return Math.fround(offset - sum);
  });
}

/** Rows of the k nearest, ties in the items' order. */
export function nearest(distances, k) {
  return Array.from(distances.keys()).sort((a, b) => distances[a] - distances[b] || a - b).slice(0, k);
}

if (globalThis.process?.argv[1]?.endsWith("search.mjs")) {
  if (process.argv.length !== 6) {
    console.error("usage: node search.mjs GRAPH.onnx ITEMS.bin QUERIES.f32 K");
    process.exit(2);
  }
  const { readFile } = await import("node:fs/promises");
  const [graph, items, queries] = await Promise.all(process.argv.slice(2, 5).map((path) => readFile(path)));
  const { codes, logits, bits } = await encode(graph, new Float32Array(new Uint8Array(queries).buffer));
  for (let query = 0; query < logits.length / bits; query++) {
    const bytes = Math.ceil(bits / 8), k = Number(process.argv[5]);
    const distances = asymmetric(logits.slice(query * bits, (query + 1) * bits), items);
    const near = hamming(codes.slice(query * bytes, (query + 1) * bytes), items);
    console.log(JSON.stringify({ asymmetric: nearest(distances, k), hamming: nearest(near, k) }));
  }
}
