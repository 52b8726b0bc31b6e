"""Work side by side: the same results on any number of threads, and no threads within threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from anomaly_vae.models.threads import side_by_side, take_part


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_each_from_one_thread(threads):
    def job(i: int) -> tuple[int, int]:
        return i, torch.get_num_threads()

    assert side_by_side(job, 10) == [(i, 1) for i in range(10)]
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == threads, "threads made later are as they would have been"


def test_jobs_run_at_once_where_there_are_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meeting = threading.Barrier(2, timeout=20)
        assert sorted(side_by_side(lambda _: meeting.wait(), 2)) == [0, 1]
    finally:
        torch.set_num_threads(before)


def test_a_thread_that_takes_part_starts_no_others(threads):
    def names() -> set[str]:
        return set(side_by_side(lambda _: threading.current_thread().name, 6))

    with ThreadPoolExecutor(1, "outer", take_part) as pool:
        assert pool.submit(names).result() == {"outer_0"}
    inner = [name for found in side_by_side(lambda _: names(), 3) for name in found]
    assert len(set(inner)) <= threads


def test_an_error_reaches_the_caller(threads):
    def job(i: int) -> None:
        if i == 1:
            raise ValueError("the second")

    with pytest.raises(ValueError, match="the second"):
        side_by_side(job, 4)
