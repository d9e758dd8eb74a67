"""Processes of a gloo group that stay alive from test to test, because importing torch takes each of them seconds."""

import faulthandler
import gc
import os
import pickle
import shutil
import signal
import tempfile
import traceback
import warnings
from contextlib import suppress
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from time import monotonic

import torch
from support.versions import OLDER_TORCH

GRACE = 2.0  # seconds that the other ranks have to answer after one has failed: they may hang in a collective
START = 120.0  # seconds to import torch and to find each other


class Processes:
    """``count`` processes of one gloo group, which carry out one function after the other; the first run starts them."""

    def __init__(self, count):
        self.count = count
        self._workers = []
        self._connections = []
        self._folder = None

    def run(self, function, *arguments, seconds=60):
        """Let each rank call ``function(*arguments)``; the list of what they return, by rank.

        The function must be of a module's top level. Before it, each rank seeds torch by 0.

        Raises:
            AssertionError: a rank raised or died, or ``seconds`` have passed. It shows the traceback of each rank, and where a
                rank hung that had to be ended. The next run starts new processes.
        """
        request = pickle.dumps((function, arguments))  # plain pickle copies tensors; a multiprocessing queue shares their memory
        if not self._workers:
            self._start()
            self._answers("the start of the processes", START)
        for to_worker in self._connections:
            with suppress(BrokenPipeError):  # it has died since, which its answer will show
                to_worker.send_bytes(request)
        return self._answers(f"{function.__module__}.{function.__qualname__}", seconds)

    def close(self):
        """End the processes, as gently as they let us."""
        for to_worker in self._connections:
            to_worker.close()  # which ends the loop of an idle one
        for worker in self._workers:
            worker.join(10)
            worker.kill()
            worker.join()
            worker.close()
        self._workers, self._connections = [], []
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def _start(self):
        context = get_context("spawn")
        self._folder = tempfile.mkdtemp()
        for rank in range(self.count):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_work, args=(rank, self.count, self._folder, theirs), daemon=True)
            worker.start()
            theirs.close()
            self._workers.append(worker)
            self._connections.append(ours)

    def _answers(self, what, seconds):
        answers = {}
        start = monotonic()
        deadline = start + seconds
        while len(answers) < self.count:
            awaited = {c: rank for rank, c in enumerate(self._connections) if rank not in answers}
            answering = connection.wait(list(awaited), max(0.0, deadline - monotonic()))
            if not answering:
                break
            for from_worker in answering:
                rank = awaited[from_worker]
                answers[rank] = self._answer(from_worker, rank)
                if not answers[rank][0]:
                    deadline = min(deadline, monotonic() + GRACE)
        if len(answers) == self.count and all(good for good, _ in answers.values()):
            return [answers[rank][1] for rank in range(self.count)]
        raise AssertionError(self._end_and_report(what, monotonic() - start, answers))

    def _answer(self, from_worker, rank):
        try:
            return pickle.loads(from_worker.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._workers[rank].join(1)
            return False, f"died with exit code {self._workers[rank].exitcode}"

    def _end_and_report(self, what, seconds, answers):
        lines = [f"{what} failed on {self.count} processes after {seconds:.1f} s"]
        for rank, worker in enumerate(self._workers):
            if rank in answers:
                good, value = answers[rank]
                lines.append(f"rank {rank} " + ("returned" if good else value))
                continue
            os.kill(worker.pid, signal.SIGUSR1)  # writes down where it hangs, and ends it
            worker.join(5)
            stack = Path(self._folder, f"stack{rank}")
            lines.append(f"rank {rank} was still running and was ended here:\n{stack.read_text() if stack.exists() else ''}")
        for worker in self._workers:
            worker.kill()
        self.close()
        return "\n".join(lines)


def _work(rank, count, folder, to_tests):
    """The loop of one process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted pytest closes the connection
    with Path(folder, f"stack{rank}").open("w") as stack:
        faulthandler.register(signal.SIGUSR1, stack, chain=True)
        good = _answer(to_tests, _join, rank, count, folder)
        with suppress(EOFError):
            while good:
                good = _answer(to_tests, _carry_out, to_tests.recv_bytes())
            to_tests.recv_bytes()  # waits for the end
        torch.distributed.destroy_process_group()
        faulthandler.unregister(signal.SIGUSR1)


def _answer(to_tests, function, *arguments):
    try:
        answer = pickle.dumps((True, function(*arguments)))
        good = True
    except BaseException:
        answer = pickle.dumps((False, "raised\n" + traceback.format_exc()))
        good = False
    to_tests.send_bytes(answer)
    return good


def _join(rank, count, folder):
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, timedelta(seconds=60), world_size=count, rank=rank)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "the checkpoint has brought|clipping_type of parameter group")  # tested in one process
    warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)  # importing torch.distributed.optim
    for message in OLDER_TORCH:
        warnings.filterwarnings("ignore", message)


def _carry_out(request):
    function, arguments = pickle.loads(request)
    gc.collect()  # what earlier functions left behind, such as the hooks of DDP, must not wait for a moment within this one
    torch.manual_seed(0)
    return function(*arguments)
