"""Codes of a Parquet data set, written by Spark: each task reads the model once, each batch is one product.

The embeddings are handwritten digits here; in yours, `data` and `codes` are addresses that Spark knows, and `encode`
stays as it is.

pip install crovca pyspark   (and Java; tried with 4.3 and Java 17)
python examples/spark.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from sklearn.datasets import load_digits

from crovca import Codes, Hasher

folder = Path(tempfile.mkdtemp())
model = str(folder / "model")


def encode(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches with their embeddings replaced by codes, as bytes."""
    hasher = Hasher.load(model, device="cpu")
    for batch in batches:
        embeddings = np.stack(batch.column("embedding").to_numpy(zero_copy_only=False)).astype(np.float32)
        codes = [code.tobytes() for code in hasher.encode(embeddings).packed]
        yield pa.RecordBatch.from_arrays([batch.column("id"), pa.array(codes, pa.binary())], names=["id", "code"])


digits = load_digits().data.astype(np.float32)
Hasher(bits=32, epochs=5, seed=0).fit(digits).save(model)
pq.write_table(pa.table({"id": np.arange(len(digits)), "embedding": list(digits)}), folder / "data.parquet")

spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
data = spark.read.parquet(str(folder / "data.parquet"))
data.mapInArrow(encode, "id long, code binary").write.parquet(str(folder / "codes"))
spark.stop()

table = pq.read_table(folder / "codes").sort_by("id")
codes = Codes(np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8).reshape(len(table), -1), bits=32)
print(len(table), "items, as Hasher.encode has them:", codes == Hasher.load(model).encode(digits))
