"""The driver of a cluster's jobs, with an engine that does what a test says. tests/cluster has real ones."""

from __future__ import annotations

import pickle
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from harness import contents, plan_of, run_plan
from sharing_runs import run_part

from flagrelease.cli import main
from flagrelease.convert.planning.plan import Plan
from flagrelease.convert.sharing import driver, job
from flagrelease.convert.sharing.driver import Lost, Need, Node, convert_on, need_of
from flagrelease.convert.sharing.job import Made, PartJob, Refused, job_of, make_entry, run_job
from flagrelease.convert.sharing.part_folder import DRIVER_LOCK_NAME, PROGRESS_NAME
from flagrelease.convert.sharing.shares import divide
from flagrelease.durable.lock import FileLock
from flagrelease.errors import CheckpointError, FlagReleaseError, ResourceError

NEED = Need(cpus=2, memory=10**9)
NODES = [Node("n1", "node-1", 2, 10**10), Node("n2", "node-2", 4, 10**10), Node("n3", "small", 1, 10**10)]
Ending = Callable[[PartJob], Made | Refused | Lost]


class ScriptedCluster:
    """Runs jobs one after another in this process; `endings[I]` are those of part I, in the order of its starts."""

    def __init__(self, nodes: Sequence[Node] = NODES, **endings: Ending) -> None:
        self.alive = list(nodes)
        self.endings = {int(part[1:]): deque([ending]) for part, ending in endings.items()}
        self.started: list[tuple[int, float]] = []
        self.cancelled: list[int] = []
        self.dropped: list[int] = []
        self.silent: set[int] = set()
        self.always: Ending | None = None
        self._jobs: dict[object, PartJob] = {}
        self._outcomes: dict[object, Made | Refused | Lost] = {}

    def nodes(self) -> Sequence[Node]:
        return self.alive

    def start(self, job: PartJob, need: Need) -> object:
        assert need == NEED
        sent = pickle.loads(pickle.dumps(job))
        handle = object()
        self._jobs[handle] = sent
        self.started.append((job.part[0], job.patience))
        return handle

    def wait(self, running: Sequence[object], seconds: float) -> Sequence[object]:
        heard = [handle for handle in running if self._jobs[handle].part[0] not in self.silent]
        if not heard:
            return []
        handle = heard[0]
        sent = self._jobs[handle]
        waiting = self.endings.get(sent.part[0])
        ending = waiting.popleft() if waiting else self.always or (lambda job: run_job(job, "n1"))
        self._outcomes[handle] = ending(sent)
        return [handle]

    def outcome(self, job: object) -> Made | Refused | Lost:
        return self._outcomes[job]

    def drop(self, job: object) -> None:
        self.dropped.append(self._jobs[job].part[0])

    def cancel(self, running: Sequence[object]) -> None:
        self.cancelled = [self._jobs[handle].part[0] for handle in running]


@pytest.fixture(scope="module")
def plan(checkpoint: Path) -> Plan:
    return plan_of(checkpoint, "native:mp8")


@pytest.fixture(scope="module")
def alone(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("alone")
    run_plan(plan, out)
    return contents(out)


def convert(cluster: ScriptedCluster, plan: Plan, out: Path, **more: object) -> list[str]:
    said: list[str] = []
    options = {"need": NEED, "count": None, "progress": lambda done: None, "claims": {}} | more
    convert_on(cluster, plan, out, say=said.append, **options)  # type: ignore[arg-type]
    return said


def lose_after(written: int) -> Ending:
    """The job notes that so many bytes are written, then its worker is gone."""

    def end(sent: PartJob) -> Lost:
        folder = sent.out / "parts" / f"{sent.part[0]}-of-{sent.part[1]}"
        folder.mkdir(exist_ok=True)
        (folder / PROGRESS_NAME).write_text(f"{written} {sent.start} 4711 node-2 n2\n")
        return Lost("WorkerCrashedError")

    return end


def test_a_part_for_each_node_that_can_run_one(plan: Plan, alone: dict[str, bytes], tmp_path: Path) -> None:
    cluster, told = ScriptedCluster(), []
    assert convert(cluster, plan, tmp_path, progress=told.append) == []
    assert cluster.started == [(1, 0.0), (2, 0.0)], "the third node is too small"
    assert contents(tmp_path) == alone
    assert told == sorted(told)
    assert told[-1] == plan.bytes_to_write


def test_a_lost_job_is_started_again_and_waits_for_its_lock(
    plan: Plan, alone: dict[str, bytes], tmp_path: Path
) -> None:
    cluster = ScriptedCluster(_2=lose_after(1000))
    (said,) = convert(cluster, plan, tmp_path, count=3)
    assert said == "part 2/3: its worker was lost on node-2 (WorkerCrashedError); started again, it resumes"
    assert cluster.started == [(1, 0.0), (2, 0.0), (3, 0.0), (2, driver.LOCK_SECONDS)]
    assert contents(tmp_path) == alone


def test_a_job_that_never_ends_on_a_node_that_is_dead_is_started_elsewhere(
    plan: Plan, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """Ray 2.60 says for ever that a task runs on a node that is cut off from the network."""
    cluster = ScriptedCluster(_1=lambda sent: cut_off(sent))
    cluster.silent = {2}

    def cut_off(sent: PartJob) -> Made | Refused | Lost:
        lose_after(500)(replace(sent, part=(2, 3)))
        cluster.alive = [node for node in NODES if node.id != "n2"]
        cluster.silent = set()
        return run_job(sent, "n1")

    (said,) = convert(cluster, plan, tmp_path, count=3)
    assert said == "part 2/3: its worker was lost on node-2 (its node is dead); started again, it resumes"
    assert cluster.dropped == [2]
    assert contents(tmp_path) == alone


def test_a_job_that_is_lost_without_getting_further_ends_the_conversion(plan: Plan, tmp_path: Path) -> None:
    cluster = ScriptedCluster(_1=lose_after(0))
    cluster.endings[1] = deque([lose_after(n) for n in (10, 20, 20, 30, 30, 30)])
    with pytest.raises(
        ResourceError, match=r"part 1/2: its worker was lost 3 times without writing more, last on node-2"
    ):
        convert(cluster, plan, tmp_path)
    assert [part for part, _ in cluster.started].count(1) == 6
    assert cluster.cancelled == []


@pytest.mark.parametrize(("kind", "error"), [("checkpoint", CheckpointError), ("resource", ResourceError)])
def test_what_a_job_refuses_is_refused_as_on_one_machine(
    kind: str, error: type[FlagReleaseError], plan: Plan, alone: dict[str, bytes], tmp_path: Path
) -> None:
    cluster = ScriptedCluster(_1=lambda sent: Refused(kind, "model.safetensors: a NaN (part 1/3 on node-1)"))
    with pytest.raises(error, match=r"^model.safetensors: a NaN \(part 1/3 on node-1\)$"):
        convert(cluster, plan, tmp_path, count=3)
    assert cluster.cancelled == [2, 3]
    assert convert(ScriptedCluster(), plan, tmp_path) == []
    assert contents(tmp_path) == alone


def test_ctrl_c_ends_the_jobs_and_the_same_command_resumes(plan: Plan, alone: dict[str, bytes], tmp_path: Path) -> None:
    def interrupt(sent: PartJob) -> Made:
        raise KeyboardInterrupt

    cluster = ScriptedCluster(_2=interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(cluster, plan, tmp_path, count=3)
    assert cluster.cancelled == [2, 3]
    again = ScriptedCluster(nodes=NODES[:1])
    convert(again, plan, tmp_path)
    assert [part for part, _ in again.started] == [1, 2, 3], "as many parts as there are already, on one node too"
    assert contents(tmp_path) == alone


def test_a_cluster_whose_nodes_are_gone_is_not_waited_for(plan: Plan, tmp_path: Path) -> None:
    cluster, now = ScriptedCluster(), [0.0]

    def lose_nodes(sent: PartJob) -> Lost:
        cluster.alive = NODES[2:]
        now[0] += 20
        return Lost("NodeDiedError")

    cluster.always = lose_nodes
    with pytest.raises(
        ResourceError, match=r"no node of the cluster has the 2 CPUs .*\(nodes: small: 1 CPUs, .*fewer --w"
    ):
        convert(cluster, plan, tmp_path, clock=lambda: now[0])
    assert cluster.cancelled


def test_a_cluster_without_a_fitting_node_is_refused_before_a_job_is_queued(plan: Plan, tmp_path: Path) -> None:
    cluster = ScriptedCluster(nodes=[replace(NODES[0], memory=10**9 - 1)])
    with pytest.raises(
        ResourceError, match=r"1,000,000,000 bytes of memory that a job declares \(nodes: node-1: 2 CPUs"
    ):
        convert(cluster, plan, tmp_path)
    with pytest.raises(ResourceError, match=r"\(nodes: none\)"):
        convert(ScriptedCluster(nodes=[]), plan, tmp_path)
    assert cluster.started == []


def test_jobs_declare_workers_and_the_memory_of_planning(plan: Plan) -> None:
    assert need_of(plan, NODES, None).cpus == 1, "so that the smallest node can run one"
    need = need_of(plan, NODES, 3)
    assert need.cpus == 3
    assert need.memory > need_of(plan, NODES, 1).memory > 50e6


def test_two_drivers_on_one_output_are_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    with (
        FileLock(tmp_path / "parts" / DRIVER_LOCK_NAME, tmp_path),
        pytest.raises(ResourceError, match=r"in use by another flagrelease process \(process [0-9]+ on "),
    ):
        convert(ScriptedCluster(), plan, tmp_path)


def sent(plan: Plan, out: Path, token: str = "t") -> PartJob:
    return job_of(plan, divide(plan, 2)[0], 1, out, token, 1, {}, 0.0)


def write_token(out: Path, token: str) -> None:
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "driver").write_text(token)


def test_a_node_that_does_not_see_the_output_is_refused(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder of that name is missing, or is its own and holds what another driver left."""
    monkeypatch.setattr(job, "_SEE_SECONDS", 0.0)
    write_token(tmp_path / "own", "of another driver")
    for out in (tmp_path / "missing", tmp_path / "own"):
        refusal = run_job(sent(plan, out), "n1")
        assert isinstance(refusal, Refused)
        assert refusal.kind == "resource"
        assert "is not the same folder on every node; --executor ray needs a file system that all" in refusal.message
        assert "(part 1/2 on " in refusal.message


def test_a_node_that_sees_another_checkpoint_is_refused(checkpoint: Path, plan: Plan, tmp_path: Path) -> None:
    write_token(tmp_path, "t")
    job_there = replace(sent(plan, tmp_path), files=plan_of(shutil.copytree(checkpoint, tmp_path / "c")).source.files)
    assert isinstance(run_job(replace(job_there, part=(1, 2)), "n1"), Made)
    (tmp_path / "c" / "LICENSE").write_text("another one")
    refusal = run_job(replace(job_there, part=(2, 2)), "n1")
    assert isinstance(refusal, Refused)
    assert "makes another plan here than where the conversion was started" in refusal.message
    shutil.rmtree(tmp_path / "c")
    refusal = run_job(job_there, "n1")
    assert isinstance(refusal, Refused)
    assert refusal.kind == "checkpoint"


def test_a_node_with_another_version_or_other_code_is_refused(plan: Plan, tmp_path: Path) -> None:
    version, code = job.version_and_code()
    packed = pickle.dumps(sent(plan, tmp_path))
    kind, message = make_entry("9.9", code)(packed, "n1")
    assert (kind, message.partition(": ")[2]) == (
        "resource", f"has flagrelease {version}, this machine 9.9; install one version everywhere",
    )  # fmt: skip
    kind, message = make_entry(version, "0" * 64)(packed, "n1")
    assert kind == "resource"
    assert "with other code than this machine" in message
    write_token(tmp_path, "t")
    assert isinstance(pickle.loads(make_entry(version, code)(packed, "n1")), Made)  # type: ignore[arg-type]


def test_a_node_without_flagrelease_is_refused(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that is sent imports nothing of ours before it runs, so it arrives there."""
    entry = make_entry(*job.version_and_code())
    monkeypatch.setitem(__import__("sys").modules, "flagrelease.convert.sharing.job", None)
    monkeypatch.delattr("flagrelease.convert.sharing.job")
    kind, message = entry(b"", "n1")
    assert kind == "resource"
    assert "flagrelease cannot be imported there" in message


def test_a_restarted_job_waits_for_the_lock_of_a_dead_node(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_token(tmp_path, "t")
    run_part(plan, 1, 2, tmp_path)
    (tmp_path / "parts/1-of-2/done.json").unlink()
    lock = FileLock(tmp_path / "parts/1-of-2/native-mp8/.flagrelease/lock", tmp_path)
    refusal = run_job(sent(plan, tmp_path), "n1")
    assert isinstance(refusal, Refused)
    assert "in use by another flagrelease process" in refusal.message
    monkeypatch.setattr("time.sleep", lambda seconds: lock.close())  # the file system drops it while the job waits
    assert isinstance(run_job(replace(sent(plan, tmp_path), patience=60.0), "n1"), Made)


def test_options_that_do_not_go_together(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(checkpoint), "--target", "native:mp8", "--out", str(tmp_path)]
    for more, said in (
        (["--executor", "ray", "--part", "1/2"], "leave out --part and --merge"),
        (["--executor", "ray", "--device", "cuda"], "jobs of a cluster decode on CPUs"),
        (["--executor", "ray", "--disk", "1GB"], "stay until they are merged"),
        (["--parts", "2"], "belong to --executor ray"),
        (["--cluster", "node-1:6379"], "belong to --executor ray"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err


def test_without_ray_the_command_says_what_to_install(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["convert", str(checkpoint), "--target", "native:mp8", "--out", str(tmp_path), "--executor", "ray"]
    assert main(words) == 4
    assert "--executor ray needs ray, which is not installed: pip install '.[ray]'" in capsys.readouterr().err
