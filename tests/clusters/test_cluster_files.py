"""The cluster files: Ray's own reading of them, and what they must and must not do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from crh_tune.settings.search import read_search

PROJECT = Path(__file__).parents[2]
CLUSTERS = PROJECT / "clusters"
LAUNCHED = ["gpu", "on_prem"]
"""The files that `ray up` reads."""
ALL = [*LAUNCHED, "kuberay"]
SECRETS = {
    "a private key": r"-----BEGIN",
    "an AWS key": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "a long random string": r"(?<![\w/.-])(?=[\w+/=]*\d)[A-Za-z0-9+=_]{32,}",
    "a password": r"(?i)(password|passwd|secret_access_key|_auth_token|api_?key) *[=:] *[\"']?\w",
}


def text(name: str) -> str:
    return (CLUSTERS / f"{name}.yaml").read_text()


def prepared(name: str) -> dict[str, Any]:
    """A cluster file as Ray sees it: defaults filled in, the common setup commands put before head's and workers'."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(text(name)))
    return config


def rayjob() -> dict[str, Any]:
    return next(document for document in yaml.safe_load_all(text("kuberay")) if document["kind"] == "RayJob")


def pods() -> dict[str, dict[str, Any]]:
    spec = rayjob()["spec"]["rayClusterSpec"]
    [workers] = spec["workerGroupSpecs"]
    return {"head": spec["headGroupSpec"]["template"], "worker": workers["template"]}


def kuberay_config() -> dict[str, Any]:
    """The autoscaler's settings as Ray derives them from the custom resource; it checks them against its schema."""
    spec = rayjob()["spec"]["rayClusterSpec"]
    resource = {"metadata": {"name": "crh-tune", "namespace": "default"}, "spec": spec}
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return config


def node_types(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The whole settings, the head's node type and the only worker's."""
    config = kuberay_config() if name == "kuberay" else prepared(name)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    [worker] = types.values()
    return config, head, worker


def setup_of(config: dict[str, Any]) -> dict[str, list[str]]:
    return {side: config[f"{side}_setup_commands"] for side in ("head", "worker")}


def starts_of(config: dict[str, Any]) -> list[str]:
    """The commands that start Ray, on the head and on the workers."""
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHED)
def test_is_valid_for_ray_and_a_misspelt_key_is_not(name: str) -> None:
    config = prepared(name)
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        validate_config({**config, "idle_timeout_minute": 5})


def test_the_keys_rays_schema_does_not_look_at_are_known() -> None:
    gpu = yaml.safe_load(text("gpu"))
    assert set(gpu["provider"]) == {"type", "region", "cache_stopped_nodes"}
    known = {"InstanceType", "ImageId", "SecurityGroupIds", "BlockDeviceMappings", "InstanceMarketOptions"}
    for node_type in gpu["available_node_types"].values():
        assert set(node_type["node_config"]) <= known
    assert set(yaml.safe_load(text("on_prem"))["provider"]) == {"type", "head_ip", "worker_ips"}


@pytest.mark.parametrize("name", ["gpu", "kuberay"])
def test_gpu_workers_come_from_zero_and_go_when_idle(name: str) -> None:
    config, head, worker = node_types(name)
    assert head["resources"]["GPU"] == 0
    assert 1 <= head["resources"]["CPU"] <= 4
    assert worker["resources"]["GPU"] >= 1
    assert worker["min_workers"] == 0
    assert 1 <= worker["max_workers"] <= config["max_workers"]
    assert 1 <= config["idle_timeout_minutes"] <= 30


def test_spot_is_an_option_and_ended_instances_are_not_kept() -> None:
    [line] = [line for line in text("gpu").splitlines() if "MarketType" in line]
    assert line.lstrip().startswith("# ")
    with_spot = yaml.safe_load(text("gpu").replace(line, line.replace("# ", "")))
    validate_config(prepare_config(with_spot))
    node_config = with_spot["available_node_types"]["gpu_worker"]["node_config"]
    assert node_config["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert prepared("gpu")["provider"]["cache_stopped_nodes"] is False


def test_on_prem_machines_all_join() -> None:
    config = prepared("on_prem")
    [only] = config["available_node_types"].values()
    assert only["min_workers"] == only["max_workers"] == len(config["provider"]["worker_ips"]) > 0
    # version 2 never starts Ray on them
    assert any("RAY_enable_autoscaler_v2=0" in command for command in config["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["gpu", "kuberay"])
def test_a_search_is_told_how_far_the_cluster_may_scale(name: str) -> None:
    _, head, worker = node_types(name)
    if name == "gpu":
        told = dict(re.findall(r"CRH_TUNE_MAX_(\w+)S=(\d+)", "\n".join(prepared("gpu")["head_setup_commands"])))
    else:
        [container] = pods()["head"]["spec"]["containers"]
        told = {
            each["name"].removeprefix("CRH_TUNE_MAX_").removesuffix("S"): each["value"]
            for each in container["env"]
            if each["name"].startswith("CRH_TUNE_MAX_")
        }
    most = {
        kind: head["resources"][kind] + worker["max_workers"] * worker["resources"][kind] for kind in ("CPU", "GPU")
    }
    assert {kind: int(value) for kind, value in told.items()} == most


@pytest.mark.parametrize("name", ["gpu", "kuberay"])
@pytest.mark.parametrize("space", sorted((PROJECT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_worker_has_what_one_of_a_shipped_search_reserves(name: str, space: Path) -> None:
    _, _, worker = node_types(name)
    scaling = read_search(space).scaling
    assert worker["resources"]["CPU"] >= scaling.cpus_per_worker
    assert worker["resources"]["GPU"] >= scaling.gpus_per_worker


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_installs_the_working_copy_with_plain_pip(name: str) -> None:
    config = prepared(name)
    assert config["file_mounts"]["~/crh_tune_src"] == "."
    assert {"/.venv", "/.git", "/crh_runs"} <= set(config["rsync_exclude"])
    for side, commands in setup_of(config).items():
        installs = [shlex.split(command) for command in commands if "pip install" in command]
        [own] = [words for words in installs if "-e" in words]
        assert own[own.index("-e") + 1] == "~/crh_tune_src", side
        assert own[own.index("-c") + 1] == "~/crh_tune_src/constraints.txt", side
        assert "ray[default]" in own, side  # the job server; its version is the constraints'
        options = {word for words in installs for word in words if word.startswith("-")}
        assert options <= {"-q", "-c", "-e"}, side
    assert "pip install -q boto3" in config["head_setup_commands"] or name != "gpu"


def test_pods_run_the_image_the_dockerfile_builds_from_the_working_copy() -> None:
    dockerfile = (CLUSTERS / "Dockerfile").read_text()
    version = re.search(r"^ray==(\S+)$", (PROJECT / "constraints.txt").read_text(), re.M)
    assert version is not None
    assert re.search(r"^FROM rayproject/ray:(\S+?)-py311", dockerfile, re.M)[1] == version[1]  # type: ignore[index]
    assert rayjob()["spec"]["rayClusterSpec"]["rayVersion"] == version[1]
    assert re.search(r"^COPY \S+ \. /home/ray/crh_tune_src$", dockerfile, re.M)
    [run] = re.findall(r"^RUN (.*)$", dockerfile, re.M)
    assert "-c /home/ray/crh_tune_src/constraints.txt -e /home/ray/crh_tune_src" in run
    assert {".venv", ".git", "crh_runs"} <= set((CLUSTERS / "Dockerfile.dockerignore").read_text().split())
    images = {pod["spec"]["containers"][0]["image"] for pod in pods().values()}
    [image] = images
    assert f"docker build -f clusters/Dockerfile -t {image} ." in dockerfile
    assert f"/{image} ." in text("kuberay")


@pytest.mark.parametrize("name", LAUNCHED)
def test_setup_commands_are_bash_and_may_run_again(name: str, tmp_path: Path) -> None:
    config = prepared(name)
    for commands in (*setup_of(config).values(), starts_of(config), config["worker_start_ray_commands"]):
        for command in commands:
            subprocess.run(["bash", "-n", "-c", command], check=True)
    profile = [command for command in config["head_setup_commands"] if "crh_tune_profile" in command]
    (tmp_path / ".bashrc").write_text("PATH=/from/before\n")
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for command in profile * 2:
        subprocess.run(["bash", "-c", command], check=True, env=environment)
    assert (tmp_path / ".bashrc").read_text().count("crh_tune_profile") == 1
    shown = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; echo $PATH $RAY_AUTH_MODE $CRH_TUNE_CACHE"],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert shown.stdout.strip() == f"{tmp_path}/crh_tune_env/bin:/from/before token {tmp_path}/crh_runs/cache"


def test_the_cache_of_pods_is_on_the_claim_that_all_of_them_mount() -> None:
    [head] = pods()["head"]["spec"]["containers"]
    [cache] = [each["value"] for each in head["env"] if each["name"] == "CRH_TUNE_CACHE"]
    for pod in pods().values():
        [container] = pod["spec"]["containers"]
        assert any(Path(cache).is_relative_to(mount["mountPath"]) for mount in container["volumeMounts"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_token_is_demanded_everywhere(name: str) -> None:
    config = prepared(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = starts_of(config)
    assert len(starts) == 2
    for command in starts:
        assert re.search(r"export RAY_AUTH_MODE=token\b[^;]*;.* ray start ", command)


def test_kuberay_makes_the_token() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("name", ALL)
def test_no_address_of_the_world(name: str) -> None:
    without_comments = re.sub(r"(^|\s)#.*", "", text(name))
    assert not re.search(r"(?<![\d.])0\.0\.0\.0|::/0", without_comments)
    assert not re.search(
        r"NodePort|LoadBalancer|hostPort|hostNetwork|kind: (Ingress|Route|Service)\b", without_comments
    )


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_dashboard_listens_on_loopback(name: str) -> None:
    [head] = [command for command in prepared(name)["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in shlex.split(head)


def test_aws_opens_no_security_group() -> None:
    """Without SecurityGroupIds, Ray makes a group that takes ssh from everywhere."""
    config = prepared("gpu")
    assert "security_group" not in config["provider"]
    for node_type in config["available_node_types"].values():
        assert node_type["node_config"]["SecurityGroupIds"]


def test_kubernetes_lets_only_the_operator_and_one_another_reach_the_pods() -> None:
    assert rayjob()["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    [policy] = [each for each in yaml.safe_load_all(text("kuberay")) if each["kind"] == "NetworkPolicy"]
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    for pod in pods().values():
        assert chosen.items() <= pod["metadata"]["labels"].items()
    [rule] = policy["spec"]["ingress"]
    allowed = [peer["podSelector"]["matchLabels"] for peer in rule["from"]]
    assert allowed == [chosen, {"app.kubernetes.io/component": "kuberay-operator"}]


def test_the_rayjob_is_complete() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    storage = job["spec"]["entrypoint"].split("--storage ")[1]
    for pod in pods().values():
        [container] = pod["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        [volume] = pod["spec"]["volumes"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": storage}]
        assert volume["persistentVolumeClaim"] == {"claimName": "crh-runs"}
    assert "nvidia.com/gpu" not in pods()["head"]["spec"]["containers"][0]["resources"]["limits"]


def test_aws_workers_share_the_folder_of_the_searches() -> None:
    config = prepared("gpu")
    assert any("$HOME/crh_runs" in command and "/etc/exports" in command for command in config["head_setup_commands"])
    mount, *rest = config["worker_start_ray_commands"]
    assert mount.endswith("mount -t nfs4 $RAY_HEAD_IP:$HOME/crh_runs ~/crh_runs")
    assert any("ray start" in command for command in rest)


def found_secrets(content: str) -> set[str]:
    return {kind for kind, pattern in SECRETS.items() if re.search(pattern, content)}


@pytest.mark.parametrize("path", sorted(CLUSTERS.iterdir()), ids=lambda path: path.name)
def test_no_secret(path: Path) -> None:
    assert not found_secrets(path.read_text())


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("a private key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("an AWS key", "aws: AKIA" + "2" * 16),
        ("a long random string", "echo " + "0f1e" * 16),
        ("a password", "export RAY_AUTH_TOKEN=hunter2"),
    ],
)
def test_a_secret_would_be_found(kind: str, content: str) -> None:
    assert kind in found_secrets(content)


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_header_says_how_to_use_it(name: str) -> None:
    header = text(name).split("\ncluster_name:")[0]
    file = f"clusters/{name}.yaml"
    for command in (
        f"ray up -y {file}",
        f"ray submit {file} crh_tune/search.py",
        f"ray submit --tmux {file} crh_tune/search.py",
        "ray job submit --address http://127.0.0.1:8265",
        f"ray exec --port-forward 5000 {file}",
        "mlflow ui --host 127.0.0.1 --port 5000",
        f"ray down -y {file}",
    ):
        assert command in header


def test_the_header_of_kuberay_says_how_to_use_it() -> None:
    header = text("kuberay").split("\napiVersion:")[0]
    for command in (
        "docker build -f clusters/Dockerfile",
        "kubectl apply -f clusters/kuberay.yaml",
        "ray job submit --address http://127.0.0.1:8265",
        "mlflow ui --host 127.0.0.1 --port 5000",
        "kubectl delete -f clusters/kuberay.yaml",
    ):
        assert command in header
    claim = re.search(r"kubectl apply -f - <<'END'\n((?:#.*\n)+?)#   END", header)
    assert claim is not None
    resource = yaml.safe_load(re.sub(r"(?m)^#", "", claim[1]))
    assert resource["kind"] == "PersistentVolumeClaim"
    assert resource["metadata"]["name"] == "crh-runs"
    assert resource["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", ALL)
def test_nobody_is_told_to_submit_with_stop(name: str) -> None:
    """In Ray 2.60 it powers the head off."""
    assert "--stop" not in text(name)
