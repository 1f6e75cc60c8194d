"""A synchronous client of a daemon's API, over its unix socket, or at a manager's URL.

Every failure is an ApiError with a remedy.  Not here: printing.  Rests on httpx2.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx2

from vmmobility.api.errors import Unavailable, error_of
from vmmobility.api.remote import Remote
from vmmobility.api.service import Json
from vmmobility.errors import ApiError
from vmmobility.wire.move_terms import NO_TERMS, MoveTerms, terms_to_json
from vmmobility.wire.values import VmKey

ANSWER_S = 30.0  # how long an ordinary answer may take
RELOCATE_S = 900.0  # a guest's memory and disks go from one server to another
START_S = 300.0  # a guest boots and registers, or ends
Place = Path | Remote


class _Client:
    def __init__(self, place: Place, daemon: str) -> None:
        """daemon: what listens there, for errors' remedies ("manager", "nve")."""
        self._place = place
        self._daemon = daemon
        if isinstance(place, Remote):
            self._http = httpx2.Client(
                verify=place.trust(),
                trust_env=False,
                base_url=place.url,
                headers={"Authorization": f"Bearer {place.token}"},
                timeout=ANSWER_S,
            )
        else:
            self._http = httpx2.Client(
                transport=httpx2.HTTPTransport(uds=str(place)),
                base_url="http://vmmobility",
                timeout=ANSWER_S,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def status(self) -> Json:
        answer: Json = self._ask("GET", "/v1/status")
        return answer

    def check(self, timeout_s: float) -> Json:
        """Compare everything with everything; raises Unavailable if it takes longer than that."""
        answer: Json = self._ask(
            "POST", f"/v1/check?timeout={timeout_s:g}", timeout_s=ANSWER_S + timeout_s
        )
        return answer

    def alarms(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/alarms")
        return answer

    def _ask(
        self, method: str, path: str, *, json: Json | None = None, timeout_s: float = ANSWER_S
    ) -> Any:
        """The answer's JSON.  Raises ApiError."""
        try:
            response = self._http.request(method, path, json=json, timeout=timeout_s)
        except httpx2.ConnectError as error:
            raise self._no_daemon(error) from error
        except httpx2.TimeoutException as error:
            raise Unavailable(
                f"{self._place}: no answer in {timeout_s:g} s", f"look at the {self._daemon}'s log"
            ) from error
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"{self._place}: the connection broke: {error}",
                f"did the {self._daemon} end? look at its log, then ask again",
            ) from error
        return self._check(response)

    def _check(self, response: httpx2.Response) -> Any:
        """The answer's JSON.  Raises ApiError for a refusal."""
        try:
            answer = response.json()
        except ValueError:
            raise ApiError(
                f"{self._place}: an answer that is no JSON", f"is this a {self._daemon}'s socket?"
            ) from None
        if response.is_success:
            return answer
        problem = answer if isinstance(answer, dict) else {}
        message = str(problem.get("error", f"HTTP status {response.status_code}"))
        raise error_of(response.status_code, message, str(problem.get("remedy", "")))

    def _no_daemon(self, error: Exception) -> ApiError:
        if isinstance(self._place, Remote):
            what = "is it up, is that its address, and does --ca name who signed its certificate?"
            return Unavailable(f"{self._place}: cannot be reached: {error}", what)
        return _nobody_at(self._place, self._daemon)


def _nobody_at(path: Path, daemon: str) -> ApiError:
    start = f"start it with `vmmob {daemon} run --config FILE`, or name its --socket"
    if not path.exists():
        return Unavailable(f"{path}: no such socket", start)
    if not path.is_socket():
        return Unavailable(f"{path}: is no socket", "name the daemon's --socket")
    # Asked anew, since httpx2 does not tell why it could not connect.
    if not os.access(path, os.R_OK | os.W_OK):
        return Unavailable(f"{path}: permission denied", "run as root, or as a member of its group")
    return Unavailable(f"{path}: nobody listens there", start)


def _events_of(lines: Iterator[str]) -> Iterator[Json | None]:
    """Server-sent events as JSON; a comment is None."""
    for line in lines:
        if line.startswith(":"):
            yield None
        elif line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def _quoted(name: object) -> str:
    return quote(str(name), safe="")


def _vm_path(vm: VmKey, under: str, action: str = "") -> str:
    return f"/v1/{under}/{_quoted(vm.vm_id)}{action}?vni={vm.vni}"


class ManagerClient(_Client):
    """The manager's API (docs/architecture.md says what the answers hold)."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, "manager")

    def bindings(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/bindings")
        return answer

    def binding(self, vm: VmKey) -> Json:
        answer: Json = self._ask("GET", _vm_path(vm, "bindings"))
        return answer

    def order_guest(
        self, vm: VmKey, verb: str, *, force: bool = False, grace_s: int | None = None
    ) -> Json:
        """start, suspend, resume, stop or delete; the answer comes before that is done."""
        method, action = ("DELETE", "") if verb == "delete" else ("POST", f"/{verb}")
        path = _vm_path(vm, "vms", action) + ("&force=1" if force else "")
        path += "" if grace_s is None else f"&grace={grace_s}"
        answer: Json = self._ask(method, path)
        return answer

    def release(self, vm: VmKey, fenced: str = "") -> Json:
        """Thaw a frozen binding.  fenced: only when that NVE's host is: any NVE may start the VM
        from now on."""
        path = _vm_path(vm, "bindings", "/release")
        answer: Json = self._ask("POST", f"{path}&fenced={_quoted(fenced)}" if fenced else path)
        return answer

    def create_vm(self, body: Json) -> Json:
        answer: Json = self._ask("POST", "/v1/vms", json=body)
        return answer

    def confirm_vm(self, vm: VmKey, body: Json) -> Json:
        """Take its offer; body: `resources` adjusts it downwards."""
        answer: Json = self._ask("POST", _vm_path(vm, "vms", "/confirm"), json=body)
        return answer

    def life(self, vm: VmKey) -> Json:
        answer: Json = self._ask("GET", _vm_path(vm, "vms", "/life"))
        return answer

    def onboarded(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/onboarded")
        return answer

    def onboard(self, vm: Json) -> Json:
        """vm: {"vm_id","vni","interfaces","nves"}."""
        answer: Json = self._ask("PUT", f"/v1/onboarded/{_quoted(vm['vm_id'])}", json=vm)
        return answer

    def offboard(self, vm: VmKey) -> Json:
        answer: Json = self._ask("DELETE", _vm_path(vm, "onboarded"))
        return answer

    def groups(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/groups")
        return answer

    def declare_group(self, name: str, vni: int, members: dict[str, int]) -> Json:
        """members: VM-IDs and their numbers."""
        body = {"vni": vni, "members": members}
        answer: Json = self._ask("PUT", f"/v1/groups/{_quoted(name)}", json=body)
        return answer

    def delete_group(self, name: str) -> Json:
        answer: Json = self._ask("DELETE", f"/v1/groups/{_quoted(name)}")
        return answer

    def vms(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/vms")
        return answer

    def vm(self, vm: VmKey) -> Json:
        answer: Json = self._ask("GET", _vm_path(vm, "vms"))
        return answer

    def routers(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/routers")
        return answer

    def routes(self) -> list[Json]:
        """What each router was told of each VM, and what it says of the fabric."""
        answer: list[Json] = self._ask("GET", "/v1/routes")
        return answer

    def trace(self, address: str, start: str, timeout_s: float) -> Json:
        """Where packets for an address go.  start: the node where they begin, "" for all nodes."""
        path = f"/v1/trace/{_quoted(address)}?timeout={timeout_s:g}"
        path += f"&from={_quoted(start)}" if start else ""
        # Hop by hop each node may take that long; one that does not answer ends the way.
        answer: Json = self._ask("GET", path, timeout_s=ANSWER_S + 2 * timeout_s)
        return answer

    def nves(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/nves")
        return answer

    def moves(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/moves")
        return answer

    def move(self, id: str, wait_s: float | None = None) -> Json:
        """With wait_s: the answer comes when the move has ended, or after so many seconds."""
        path = f"/v1/moves/{_quoted(id)}"
        if wait_s is None:
            answer: Json = self._ask("GET", path)
        else:
            answer = self._ask("GET", f"{path}?wait={wait_s:g}", timeout_s=ANSWER_S + wait_s)
        return answer

    def start_move(self, vm: VmKey, to: str, terms: MoveTerms = NO_TERMS, mode: str = "") -> Json:
        """mode: "hot", "warm", "cold"; "": hot or cold, by what its guest is."""
        body = {"vm": vm.vm_id, "vni": vm.vni, "to": to, **terms_to_json(terms)}
        body |= {"mode": mode} if mode else {}
        answer: Json = self._ask("POST", "/v1/moves", json=body)
        return answer

    def abort_move(self, id: str) -> Json:
        answer: Json = self._ask("POST", f"/v1/moves/{_quoted(id)}/abort")
        return answer

    @contextlib.contextmanager
    def events(self, patience_s: float, **query: str) -> Iterator[Iterator[Json | None]]:
        """Events as they come, once the daemon has begun to tell; None for each sign of life.

        query: as of GET /v1/events; patience_s: raises Unavailable after so long without either
        """
        try:
            with self._http.stream(
                "GET", "/v1/events", params=query, timeout=patience_s
            ) as response:
                if not response.is_success:
                    response.read()
                    self._check(response)
                yield _events_of(response.iter_lines())
        except httpx2.ConnectError as error:
            raise self._no_daemon(error) from error
        except httpx2.HTTPError as error:
            raise Unavailable(
                f"{self._place}: the events broke off: {type(error).__name__} {error}",
                f"did the {self._daemon} end, or is this too slow? ask again with the last id",
            ) from error

    def protected(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/protected")
        return answer

    def protect(self, vm: VmKey, wanted: Json) -> Json:
        """wanted: {"to","every_s","fail_over","lease_s"}; all but the first may be absent."""
        path = f"/v1/vms/{_quoted(vm.vm_id)}/protection"
        answer: Json = self._ask("POST", path, json={**wanted, "vni": vm.vni})
        return answer

    def unprotect(self, vm: VmKey) -> Json:
        path = f"/v1/vms/{_quoted(vm.vm_id)}/protection?vni={vm.vni}"
        answer: Json = self._ask("DELETE", path)
        return answer

    def drains(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/drains")
        return answer

    def drain(self, id: str, wait_s: float | None = None) -> Json:
        """With its VMs.  With wait_s: when it has ended, or after so many seconds."""
        path = f"/v1/drains/{_quoted(id)}"
        if wait_s is None:
            answer: Json = self._ask("GET", path)
        else:
            answer = self._ask("GET", f"{path}?wait={wait_s:g}", timeout_s=ANSWER_S + wait_s)
        return answer

    def start_drain(self, wanted: Json) -> Json:
        """wanted: {"nve","to","parallel","uncordon"}; all but the first may be absent."""
        answer: Json = self._ask("POST", "/v1/drains", json=wanted)
        return answer

    def abort_drain(self, id: str) -> Json:
        answer: Json = self._ask("POST", f"/v1/drains/{_quoted(id)}/abort")
        return answer

    def cordon(self, nve: str) -> Json:
        answer: Json = self._ask("PUT", f"/v1/nves/{_quoted(nve)}/cordon")
        return answer

    def uncordon(self, nve: str) -> Json:
        answer: Json = self._ask("DELETE", f"/v1/nves/{_quoted(nve)}/cordon")
        return answer


class NveClient(_Client):
    """An NVE's API."""

    def __init__(self, socket_path: Path) -> None:
        super().__init__(socket_path, "nve")

    def vms(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/vms")
        return answer

    def start_vm(self, definition: Json, server: str = "") -> Json:
        path = f"/v1/vms/{_quoted(definition.get('vm_id', ''))}"
        path += f"?server={_quoted(server)}" if server else ""
        answer: Json = self._ask("PUT", path, json=definition, timeout_s=START_S)
        return answer

    def stop_vm(self, vm: VmKey) -> Json:
        answer: Json = self._ask("DELETE", _vm_path(vm, "vms"), timeout_s=START_S)
        return answer

    def relocate_vm(self, vm: VmKey, server: str) -> Json:
        path = _vm_path(vm, "vms", "/relocate") + f"&server={_quoted(server)}"
        answer: Json = self._ask("POST", path, timeout_s=RELOCATE_S)
        return answer

    def expect_vm(self, definition: Json) -> Json:
        path = f"/v1/expected/{_quoted(definition.get('vm_id', ''))}"
        answer: Json = self._ask("PUT", path, json=definition, timeout_s=START_S)
        return answer

    def unexpect_vm(self, vm: VmKey) -> Json:
        answer: Json = self._ask("DELETE", _vm_path(vm, "expected"), timeout_s=START_S)
        return answer


class NaptClient(_Client):
    """A NAPT box's API."""

    def __init__(self, socket_path: Path) -> None:
        super().__init__(socket_path, "napt")

    def mappings(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/mappings")
        return answer


class RouterClient(_Client):
    """A router's API."""

    def __init__(self, socket_path: Path) -> None:
        super().__init__(socket_path, "router")

    def routes(self) -> list[Json]:
        answer: list[Json] = self._ask("GET", "/v1/routes")
        return answer

    def explain(self, address: str) -> list[Json]:
        """The rules and routes that lead an address there."""
        answer: list[Json] = self._ask("GET", f"/v1/explain/{_quoted(address)}")
        return answer
