"""Eight clients beside a writer, for eight minutes: no wrong answer, no error, no growing memory."""

import numpy as np
import pytest

from tests.service import soak


@pytest.mark.torture
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.starts
def test_clients_beside_a_writer_for_minutes(tmp_path, workers):
    counts, wrong, early, late = soak.soak(tmp_path / "codes", 240.0, "--workers", str(workers))
    assert wrong == []
    assert set(counts) == {200, "seconds", "generations"}
    assert late < 1.2 * early
    slowest = 1000 * np.percentile(counts["seconds"], 99)
    memory = f"{early:.0f} then {late:.0f} MB"
    print(f"{workers}: {counts[200]} answers, {counts['generations']} states, p99 {slowest:.0f} ms, {memory}")
