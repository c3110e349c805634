"""Who shares a key with whom over tasks: the same for any tasks and partitions, in bounded memory."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.clusters import Labels, clusters
from data_pipeline.keys import TEXT_KEY, read_edges, write_edges, write_keys
from data_pipeline.merge import groups, merge
from data_pipeline.ngrams import mix
from data_pipeline.sections import Sections, create
from fmscale.errors import DataError
from tests.unit.test_clusters import reference

BANDS = 3


def spread(small: npt.NDArray[np.uint64], dtype: np.dtype) -> npt.NDArray:
    """Keys of small numbers, over the whole range; 0 stays 0, and some differ in their last bytes alone."""
    if dtype == np.uint64:
        return np.where(small > 0, mix(small), np.uint64(0))
    wide = np.zeros((*small.shape, 2), ">u8")
    wide[..., 0] = np.where(small > 0, mix(small // np.uint64(2)), np.uint64(0))
    wide[..., 1] = (small % np.uint64(2)) << np.uint64(8)
    return np.ascontiguousarray(wide).view(TEXT_KEY)[..., 0]


def label_in_tasks(
    folder: Path, keys: npt.NDArray, cuts: list[int], partitions: int, records: int = 1 << 20
) -> tuple[Labels, list[Path]]:
    tasks = np.split(keys, cuts)
    offsets = np.cumsum([0, *(len(task) for task in tasks)])
    files = [folder / f"keys-{number}" for number in range(len(tasks))]
    for file, task in zip(files, tasks, strict=True):
        write_keys(file, task, partitions)
    edges = []
    for band in range(keys.shape[1]):
        for partition in range(partitions):
            edges.append(folder / f"edges-{band}-{partition}")
            write_edges(edges[-1], files, offsets, band, partition, records=records)
    return clusters(len(keys), read_edges(files, offsets, edges)), files


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from([np.dtype(np.uint64), TEXT_KEY]))
def test_clusters_are_those_of_equal_keys_for_any_tasks_and_partitions(data: st.DataObject, dtype: np.dtype) -> None:
    documents = data.draw(st.integers(1, 25))
    row = st.lists(st.integers(0, 12), min_size=BANDS, max_size=BANDS)
    small = np.array(data.draw(st.lists(row, min_size=documents, max_size=documents)), np.uint64)
    cuts = sorted(data.draw(st.lists(st.integers(0, documents), max_size=4)))
    edges = [
        (i, j)
        for i in range(documents)
        for j in range(i)
        if any(a == b != 0 for a, b in zip(small[i].tolist(), small[j].tolist(), strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        label, _ = label_in_tasks(
            Path(folder), spread(small, dtype), cuts, data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
        )
    assert label.tolist() == reference(documents, edges)


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    keys = mix(np.random.default_rng(0).integers(1, 50, (200, BANDS), np.uint64))
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        label_in_tasks(tmp_path / name, keys, [70, 70, 120], 2)
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_a_merge_holds_its_records_and_no_more(tmp_path: Path) -> None:
    dtype = np.dtype([("key", "<u8"), ("row", "<u4")])
    runs = []
    for number in range(16):
        records = np.zeros(1 << 15, dtype)
        records["key"] = np.sort(mix(np.arange(number, number + len(records), dtype=np.uint64)))
        with create(tmp_path / str(number), "test") as file:
            file.add(records)
        runs.append(Sections(tmp_path / str(number), "test")[0])
    tracemalloc.start()
    total, distinct, last = 0, 0, np.uint64(0)
    for block, owners in merge(runs, dtype, records=4096):
        assert block["key"][0] > last or not total
        assert len(owners) == len(block) <= 4096
        last = block["key"][-1]
        total += len(block)
        distinct += int(groups(block["key"]).sum())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (total, distinct) == (16 << 15, (1 << 15) + 15)
    assert peak < 4096 * 120 + 16 * 4096, f"{peak} bytes, of {total * 12} on disk"


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    keys = mix(np.random.default_rng(0).integers(1, 50, (100, 1), np.uint64))
    _, files = label_in_tasks(tmp_path, keys, [60], 2)
    out, offsets = tmp_path / "out", [0, 60, 100]
    with pytest.raises(DataError, match=r"is of another preparation(.|\n)*expected: 41 documents, 1 bands of 64 bits"):
        write_edges(out, files, [0, 60, 101], 0, 0)
    write_keys(tmp_path / "other", keys[60:], 3)
    with pytest.raises(DataError, match=r"other is of another(.|\n)*found: 40 documents, .* in 3 partitions"):
        list(read_edges([files[0], tmp_path / "other"], offsets, []))
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-1])
    with pytest.raises(DataError, match="keys-1 is damaged or missing"):
        write_edges(out, files, offsets, 0, 0)
    damaged = bytearray(whole)
    damaged[30] ^= 1  # a key of partition 0
    files[1].write_bytes(damaged)
    with pytest.raises(DataError, match="keys-1 is damaged or missing"):
        write_edges(out, files, offsets, 0, 0)
    assert not out.exists()
    write_edges(out, files, offsets, 0, 1)  # the other partition is as it was
