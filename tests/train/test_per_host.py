"""Data of each process's own: the protocol, with a thread for each process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from jgraph._errors import InputError
from jgraph.distribute import DataParallel, gathered
from jgraph.train import EvalSpec, TrainSpec, _per_host, train_and_evaluate
from jgraph.train._batches import Cycle, Part, Position
from jgraph.train._per_host import PerHost, joined

SECONDS = 30.0


class Evens(DataParallel):
    """A strategy that splits by process what each brings an even number of rows of."""

    def is_split_by_process(self, rows: int) -> bool:
        return rows > 0 and rows % 2 == 0


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Run a function in so many threads, which `gathered` joins; return results or errors."""

    def run(count: int, fn: Callable[[int], Any]) -> list[Any]:
        barrier, told, found = threading.Barrier(count, timeout=SECONDS), [None] * count, []
        results: list[Any] = [None] * count

        def meet(value: Any) -> list[Any]:
            told[int(threading.current_thread().name)] = value
            barrier.wait()
            found[:] = told
            barrier.wait()
            return list(found)

        def work(number: int) -> None:
            try:
                results[number] = fn(number)
            except (InputError, threading.BrokenBarrierError) as error:
                results[number] = error
            except RuntimeError as error:
                results[number] = error
                barrier.abort()  # this process's end is the others'

        monkeypatch.setattr(_per_host, "gathered", meet)
        threads = [threading.Thread(target=work, args=(i,), name=str(i)) for i in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in threads)
        return results

    return run


def batches_of(process: int, rows: list[int]) -> list[dict[str, Any]]:
    """Batches whose every row says whose it is and which."""
    return [
        {
            "x": np.stack([np.full(n, process), np.full(n, i), np.arange(n)], axis=-1),
            "number": np.float32(i),
        }
        for i, n in enumerate(rows)
    ]


def expected(rows: list[list[int]]) -> list[np.ndarray]:
    """The rows of each step in the order of the processes."""
    data = [batches_of(i, r) for i, r in enumerate(rows)]
    steps = max(map(len, rows))
    return [np.concatenate([d[k]["x"] for d in data if k < len(d)]) for k in range(steps)]


@pytest.mark.parametrize(
    "rows",
    [
        [[4, 4, 4], [4, 4, 4]],
        [[4, 4, 4, 3], [4, 4, 1], []],
        [[], [2] * 37],
        [[2] * 9, [2] * 8, [2] * 70],
        [[3, 3], [3, 3]],
        [[], []],
    ],
)
def test_batches_of_a_step_are_joined(processes: Any, rows: list[list[int]]) -> None:
    data = [batches_of(i, r) for i, r in enumerate(rows)]
    found = processes(len(rows), lambda i: list(PerHost(data[i], Evens())))
    want = expected(rows)
    assert [len(steps) for steps in found] == [len(want)] * len(rows)
    for k, whole in enumerate(want):
        mine = [steps[k] for steps in found]
        if isinstance(mine[0], Part):
            mine = [{"x": np.concatenate([m.batch["x"] for m in mine])}]
        for batch in mine:
            np.testing.assert_array_equal(batch["x"], whole)
    sizes = [{r[k] if k < len(r) else 0 for r in rows} for k in range(len(want))]
    is_part = [len(size) == 1 and Evens().is_split_by_process(*size) for size in sizes]
    assert [[isinstance(x, Part) for x in steps] for steps in found] == [is_part] * len(rows)


def test_numbers_of_a_batch_are_the_same_in_all(processes: Any) -> None:
    data = [batches_of(0, [2, 2]), batches_of(1, [3])]
    found = processes(2, lambda i: list(PerHost(data[i], Evens())))
    assert [batch["number"].tolist() for batch in found[0]] == [0.0, 1.0]
    data[1][0]["number"] = np.float32(5)
    for error in processes(2, lambda i: list(PerHost(data[i], Evens()))):
        assert "batch['number'] float32 5.0" in str(error)


def test_an_epoch_ends_with_the_longest_and_is_gone_on_with_in_its_middle(processes: Any) -> None:
    rows = [[2, 2, 2], [2]]

    class Epochs:
        def __init__(self, process: int) -> None:
            self.process = process

        def __iter__(self) -> Iterator[Any]:
            return self.epoch(0)

        def epoch(self, n: int) -> Iterator[Any]:
            for batch in batches_of(self.process, rows[self.process]):
                yield {"x": batch["x"] + 100 * n}

    def steps(process: int, start: Position) -> list[Any]:
        data = PerHost(Epochs(process), Evens())
        return [b.batch["x"] if isinstance(b, Part) else b["x"] for b in Cycle(data, 8, start)]

    whole = processes(2, lambda i: steps(i, Position()))
    assert [int(x[0, 2]) for x in whole[0]] == [0, 0, 0, 100, 100, 100, 200, 200]
    # The second process has no batch 2 in any epoch.
    rest = processes(2, lambda i: steps(i, Position(5, 1, 2)))
    for found, want in zip(rest, whole, strict=True):
        for x, y in zip(found, want[5:], strict=True):
            np.testing.assert_array_equal(x, y)


def test_data_that_is_empty_everywhere_is_refused_in_all(processes: Any) -> None:
    def steps(process: int) -> list[Any]:
        return list(Cycle(PerHost([], Evens()), 3))

    for error in processes(2, steps):
        assert "its epoch 0 gave none" in str(error)


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((4, 3), np.float32)},
        {"x": np.zeros((4, 2), np.float64)},
        {"z": np.zeros((4, 2), np.float32)},
    ],
)
def test_batches_that_differ_in_kind_are_refused_in_all(processes: Any, other: Any) -> None:
    good = {"x": np.zeros((4, 2), np.float32)}
    data = [[good, good], [good, other]]
    for error in processes(2, lambda i: list(PerHost(data[i], Evens()))):
        assert isinstance(error, InputError)
        assert "batch 1 of the pass has\n  process " in str(error)
        assert "process 0: batch['x'] float32[rows,2]" in str(error)


def test_a_batch_has_rows(processes: Any) -> None:
    data = [{"x": np.zeros((4, 2)), "y": np.zeros(3)}]
    (error,) = processes(1, lambda _: list(PerHost(data, Evens())))
    assert "first axes of [3, 4]: batch['x'] float64[4,2], batch['y'] float64[3]" in str(error)


def test_data_that_fails_in_one_ends_there_and_leaves_no_thread(processes: Any) -> None:
    def failing() -> Iterator[Any]:
        yield batches_of(0, [2])[0]
        raise RuntimeError("a bug in the data")

    class Data:
        def __iter__(self) -> Iterator[Any]:
            return failing()

    data = [Data(), batches_of(1, [2] * 50)]
    first, second = processes(2, lambda i: list(PerHost(data[i], Evens())))
    assert "a bug in the data" in str(first)
    assert isinstance(second, threading.BrokenBarrierError)
    del first, second
    assert not [t for t in threading.enumerate() if t.name == "jgraph-prefetch"]


def test_one_process_trains_as_without() -> None:
    data = batches_of(0, [4, 4, 3])
    data = [{"x": batch["x"].astype(np.float32)} for batch in data]

    def history(per_host: bool) -> list[dict[str, Any]]:
        return train_and_evaluate(
            nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
            lambda model, batch: (model(batch["x"])[:, 0] - 1) ** 2,
            optax.sgd(0.01),
            train=TrainSpec(data, 5, log_every=1, per_host=per_host),
            evals={"val": EvalSpec(data, per_host=per_host)},
        ).history

    assert history(True) == history(False)
    assert gathered((1, "x")) == [(1, "x")]


def test_a_strategy_must_span_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = TrainSpec([], 1, per_host=True)
    assert joined(spec, None) is spec
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shared = EvalSpec([])
    assert joined(shared, None) is shared
    with pytest.raises(InputError, match=r"all 2 processes, such as .*, got None"):
        joined(spec, None)
    with pytest.raises(InputError, match=r"got DataParallel\(data=8\)"):
        joined(spec, DataParallel())
