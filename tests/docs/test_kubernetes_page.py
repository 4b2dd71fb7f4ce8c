"""The Deployment and the Role of the page: parsed, their parts held against each other, container and probes run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from entitycelery.settings import SETTING_NAMES
from tests.cli.support import environment
from tests.docs.blocks import blocks_of
from tests.waiting import eventually

PAGE = Path("docs/how-to/kubernetes.md")
HOME = "/srv/shop"
RUN = "/run/entitycelery"
SPARE_S = 10

_VARIABLE = re.compile(r"\$\$|\$\((\w+)\)")


def objects() -> dict[str, Any]:
    """What the page would create, by kind."""
    texts = [block.text for block in blocks_of(PAGE) if block.text.startswith("apiVersion:")]
    return {found["kind"]: found for text in texts for found in yaml.safe_load_all(text)}


@pytest.fixture
def deployment() -> Any:
    return objects()["Deployment"]


@pytest.fixture
def container(deployment: Any) -> Any:
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    return found


def test_kubernetes_reads_every_field_of_the_deployment(deployment: Any, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    (tmp_path / "deployment.json").write_text(json.dumps(deployment))
    command = ["kubectl", "set", "env", "--local", "-f", str(tmp_path / "deployment.json"), "ADDED=1", "-o", "json"]

    read = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)

    # A field that it does not know, it leaves out.
    assert missing(deployment, read) == []


def missing(wanted: Any, found: Any, path: str = "") -> list[str]:
    """Paths of what is in `wanted` and not in `found`."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        inside = [(name, value, found.get(name)) for name, value in wanted.items()]
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) <= len(found):
        inside = [(str(number), value, found[number]) for number, value in enumerate(wanted)]
    else:
        return [] if wanted == found else [path]
    return [lost for name, one, other in inside for lost in missing(one, other, f"{path}.{name}")]


def test_variables_are_settings_and_the_pods_are_those_that_are_listed(deployment: Any, container: Any) -> None:
    names = {variable["name"] for variable in container["env"]}
    template = deployment["spec"]["template"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}

    assert {name for name in names if name.startswith("ENTITY_")} <= {name.upper() for name in SETTING_NAMES}
    key, _, label = values["ENTITY_HEALTH_K8S_SELECTOR"].partition("=")
    assert template["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == {key: label}
    [volume], [mount] = template["spec"]["volumes"], container["volumeMounts"]
    assert (volume["name"], str(Path(values["ENTITY_HEALTH_FILE"]).parent)) == (mount["name"], mount["mountPath"])


def test_there_is_time_for_turns_to_end_and_for_the_app_to_start(deployment: Any, container: Any) -> None:
    [drain_timeout_s] = [
        float(variable["value"]) for variable in container["env"] if variable["name"] == "ENTITY_DRAIN_TIMEOUT_S"
    ]
    startup, readiness = container["startupProbe"], container["readinessProbe"]
    [timeout_s] = re.findall(r"--timeout (\d+)", " ".join(readiness["exec"]["command"]))

    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drain_timeout_s + SPARE_S
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60
    assert int(timeout_s) < readiness["timeoutSeconds"]


def test_the_role_allows_to_list_pods_and_nothing_else(deployment: Any) -> None:
    found = objects()
    account, role, binding = found["ServiceAccount"], found["Role"], found["RoleBinding"]

    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "Role",
        "name": role["metadata"]["name"],
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The file system of the container: the page's app, the commands, and the volume."""
    [app] = [block.text for block in blocks_of(PAGE) if block.text.startswith("# shop.py")]
    (tmp_path / "shop.py").write_text(app)
    (tmp_path / "run").mkdir()
    return tmp_path


def variables_of(container: Any, home: Path, redis_url: str) -> dict[str, str]:
    """The environment of the container: what a kubelet would fill in, filled in."""
    secrets = {"database-url": f"sqlite:///{home / 'store.db'}", "broker-url": redis_url}
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "value" in variable:
            value = variable["value"].replace(RUN, str(home / "run"))
        elif "secretKeyRef" in source:
            value = secrets[source["secretKeyRef"]["key"]]
        elif "resourceFieldRef" in source:
            of, name = source["resourceFieldRef"]["resource"].split(".")
            value = container["resources"][of][name]
        else:
            value = {"metadata.name": "shop-worker-1", "metadata.namespace": "shop"}[source["fieldRef"]["fieldPath"]]
        found[variable["name"]] = value
    found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return environment(**found)


def expanded(word: str, variables: Mapping[str, str]) -> str:
    """A word of a command as Kubernetes gives it to the container: `$(NAME)` replaced, `$$` a `$`."""
    return _VARIABLE.sub(lambda m: "$" if m[0] == "$$" else variables.get(m[1], m[0]), word)


@contextmanager
def started(container: Any, home: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    assert container["workingDir"] == HOME
    command = [expanded(word, variables) for word in container["command"]]
    with (home / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env=dict(variables), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def test_the_container_starts_passes_its_probes_and_ends_in_time(
    deployment: Any, container: Any, home: Path, redis_url: str
) -> None:
    variables = variables_of(container, home, redis_url)

    def passes(probe: str) -> bool:
        found = container[probe]
        done = subprocess.run(
            found["exec"]["command"],
            cwd=home,
            env=variables,
            capture_output=True,
            timeout=found["timeoutSeconds"],
            check=False,
        )
        return done.returncode == 0

    with started(container, home, variables) as worker:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            eventually(lambda probe=probe: passes(probe), timeout_s=60)  # type: ignore[misc]
        assert "shop@shop-worker-1" in (home / "worker.log").read_text()

        worker.terminate()

        assert worker.wait(deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]) == 0
    assert not passes("readinessProbe")
