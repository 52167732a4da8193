"""SOAP services: an operation of a WSDL is a resource, the repeated element of its answer a row.

zeep reads the WSDL and writes the request; the answer is parsed here as it arrives, row by row, so that
an answer of any size fits. The WSDL tells the types. Entities and document types are refused.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr

from dwcli.connectors._web import answered, unreachable
from dwcli.connectors._within import within
from dwcli.contract import LOCAL_PATH, Column, ConnectorConfig, Cursor, IngestedItem, Resource
from dwcli.documents import nearest
from dwcli.errors import ConnectionFailed, DwError, QueryFailed, ResourceMissing, SourceData

if TYPE_CHECKING:
    from dwcli.connectors._soaptypes import Node

TITLE = "SOAP service"
ALIASES = ("wsdl",)
EXTRA = "soap"
STAND_IN = "a service of its own, SOAP 1.1 and 1.2"
QUERY = "an operation with its arguments, such as GetOrders(since={cursor})"
INCREMENTAL = "an argument that takes the cursor"
TYPING = "declared"
STREAMING = True

CHUNK_BYTES = 64 * 1024
ENVELOPES = ("http://schemas.xmlsoap.org/soap/envelope/", "http://www.w3.org/2003/05/soap-envelope")


class Config(ConnectorConfig):
    """A SOAP web service."""

    wsdl_url: str = Field(
        description="address or file of the WSDL", min_length=1, json_schema_extra=LOCAL_PATH
    )
    username: str = Field("", description="user that may call it, if it asks for one")
    password: SecretStr = Field(
        SecretStr(""), description="the user's password", json_schema_extra={"needs": "username"}
    )
    security: Literal["basic", "token", "digest"] = Field(
        "basic",
        description="how the password is sent: HTTP basic, WS-Security UsernameToken, or its digest",
        json_schema_extra={"advanced": True},
    )
    data_path: str = Field(
        "",
        description="element that is a row, such as Orders.Order; empty for the first repeated one",
        json_schema_extra={"advanced": True},
    )
    service: str = Field(
        "", description="service of the WSDL, if not the first", json_schema_extra={"advanced": True}
    )
    port: str = Field(
        "", description="port of the service, if not the first", json_schema_extra={"advanced": True}
    )
    address: str = Field(
        "",
        description="address of the service, if not the one in the WSDL",
        json_schema_extra={"advanced": True},
    )
    timezone: str = Field(
        "UTC", description="time zone of times that name none", json_schema_extra={"advanced": True}
    )
    timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="seconds that the service may take between two signs of life",
        json_schema_extra={"advanced": True},
    )


@dataclass
class Client:
    """A service that can be called."""

    config: Config
    zeep: Any
    session: Any
    binding: Any
    service: Any
    answers: list[Any] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)


# -- connecting ------------------------------------------------------------------------------------------


def connect(config: Config) -> Client:
    """Read the WSDL. Raises ConnectionFailed with the layer that failed."""
    try:
        import requests
        import zeep
    except ImportError as error:
        from dwcli.connectors import driver_missing

        raise driver_missing("soap", error) from None

    session = requests.Session()
    try:
        client = _described(config, session)
    except DwError:
        session.close()
        raise
    except (zeep.exceptions.DTDForbidden, zeep.exceptions.EntitiesForbidden):
        session.close()
        raise ConnectionFailed(
            "the WSDL has a document type or entities, which are refused",
            layer="database",
            hint="they can make a small file fill the memory; ask the service for a WSDL without them",
        ) from None
    except requests.HTTPError as error:
        session.close()
        status = error.response.status_code if error.response is not None else 0
        raise _http_error(status, config.wsdl_url) from None
    except requests.RequestException as error:
        session.close()
        raise unreachable(error, config.wsdl_url) from None
    except OSError as error:
        session.close()
        raise ConnectionFailed(
            f"the file {config.wsdl_url} cannot be read",
            layer="name",
            why=error.strerror or str(error),
            hint="check wsdl_url: an address begins with https://, anything else is a file",
        ) from None
    except Exception as error:  # a WSDL can be wrong in more ways than zeep has exceptions
        session.close()
        raise ConnectionFailed(
            f"{config.wsdl_url} is not a WSDL that can be read",
            layer="database",
            why=f"{type(error).__name__}: {str(error)[:300]}",
            hint="open it in a browser: it has to begin with <wsdl:definitions>; many end in ?wsdl",
        ) from None
    return client


def _described(config: Config, session: Any) -> Client:
    """The client with its WSDL read."""
    import requests
    import zeep
    from zeep.wsse.username import UsernameToken

    class Transport(zeep.Transport):
        """zeep asks its transport for documents, and to post a request."""

        def load(self, url: str) -> bytes:
            if _remote(config.wsdl_url) and not _remote(url):
                raise ConnectionFailed(
                    f"the WSDL wants the local file {url}",
                    layer="database",
                    hint="a WSDL from the network may only import from there",
                )
            return bytes(super().load(url))  # type: ignore[no-untyped-call]

        def post(self, address: str, message: bytes, headers: dict[str, str]) -> requests.Response:
            return self.session.post(
                address, data=message, headers=headers, timeout=config.timeout_seconds, stream=True
            )

    wsse = None
    hosts = {urlsplit(config.wsdl_url).netloc}
    password = config.password.get_secret_value()
    if config.username and config.security == "basic":
        session.auth = _basic(config.username, password, hosts)
    elif config.username:
        digest = config.security == "digest"
        wsse = UsernameToken(config.username, password, use_digest=digest)  # type: ignore[no-untyped-call]
    transport = Transport(session=session, timeout=config.timeout_seconds)  # type: ignore[no-untyped-call]
    settings = zeep.Settings(forbid_dtd=True, forbid_entities=True, raw_response=True, strict=True)
    described = zeep.Client(  # type: ignore[no-untyped-call]
        config.wsdl_url, wsse=wsse, transport=transport, settings=settings
    )
    binding, service = _bound(config, described)
    hosts.add(urlsplit(str(service._binding_options.get("address") or "")).netloc)
    return Client(config, described, session, binding, service)


def _remote(url: str) -> bool:
    return urlsplit(str(url)).scheme in ("http", "https")


def _basic(username: str, password: str, hosts: set[str]) -> Any:
    """Signs requests to the service alone: a WSDL may import from hosts that the password is not for."""
    from requests.auth import HTTPBasicAuth

    basic = HTTPBasicAuth(username.encode(), password.encode())

    def sign(request: Any) -> Any:
        return basic(request) if urlsplit(request.url).netloc in hosts else request

    return sign


def _bound(config: Config, described: Any) -> tuple[Any, Any]:
    services = described.wsdl.services
    if not services:
        raise ConnectionFailed("the WSDL describes no service", layer="database", hint="check wsdl_url")
    name = config.service or next(iter(services))
    if name not in services:
        raise ConnectionFailed(
            f"the WSDL has no service '{name}'.{nearest(name, list(services))}",
            layer="database",
            hint=f"its services: {', '.join(services)}",
        )
    ports = services[name].ports
    port = config.port or next(iter(ports), "")
    if port not in ports:
        raise ConnectionFailed(
            f"the service {name} has no port '{port}'.{nearest(port, list(ports))}",
            layer="database",
            hint=f"its ports: {', '.join(ports)}",
        )
    binding = ports[port].binding
    if not hasattr(binding, "send") or "Soap" not in type(binding).__name__:
        raise ConnectionFailed(
            f"the port {port} does not speak SOAP",
            layer="database",
            hint=f"set port to one of: {', '.join(ports)}",
        )
    if config.address:
        return binding, described.create_service(binding.name, config.address)
    return binding, described.bind(name, port)


def close(client: Client) -> None:
    """End the session; a read that is under way ends with an error."""
    client.closing.set()
    for answer in [*client.answers]:
        try:
            answer.raw.shutdown()
        except (AttributeError, ValueError, RuntimeError, OSError):
            continue  # it has just ended by itself
    client.session.close()


# -- operations ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Where rows are in the answer of an operation."""

    #: names from below the answer's own element down to the row; empty when the answer is the row
    path: tuple[str, ...]
    #: what the WSDL says of a row; None where it is silent
    columns: tuple[Node, ...] = ()
    #: whether the WSDL knows the path
    known: bool = True


def discover(client: Client) -> Iterator[Resource]:
    """The operations of the port."""
    for name in client.binding.all():
        if getattr(client.binding.get(name).output, "body", None) is not None:
            yield describe(client, name)


def describe(client: Client, query: str) -> Resource:
    """The columns of an operation's rows, as the WSDL has them. Raises ResourceMissing, QueryFailed."""
    name, _ = _called(client, query)
    rows = _rows_of(client, name)
    named = _column_names(rows.columns)
    columns = tuple(
        Column(column, node.column_type, node.nullable, node.source_type)
        for column, node in zip(named, rows.columns, strict=True)
    )
    return Resource(query, columns, kind="operation")


def _column_names(nodes: Sequence[Node]) -> tuple[str, ...]:
    from dwcli.connectors._formats.frames import unique_names

    return unique_names(node.name.removeprefix("@") for node in nodes)


def _rows_of(client: Client, operation: str) -> _Rows:
    """Where the rows of an operation are: at `data_path`, or at the first element that is repeated."""
    from dwcli.connectors._soaptypes import Node, find_path, find_rows, node_of

    output = client.binding.get(operation).output
    body = getattr(output, "body", None)
    root = node_of(body) if body is not None else Node(operation, "jsonb")
    wanted = tuple(part for part in re.split(r"[./]", client.config.data_path) if part)
    found = find_path(root, wanted) if wanted else find_rows(root)
    if found is None:
        return _Rows(wanted, (), False) if wanted else _Rows((), tuple(root.below.values()))
    path, node = found
    if node.type == "jsonb":
        return _Rows(tuple(path), tuple(node.below.values()))
    return _Rows(tuple(path), (replace(node, many=False),))


_NAME = re.compile(r"\s*([\w.-]+)\s*")
_ASSIGNED = re.compile(r"\s*([\w.-]+)\s*=\s*")
_COMMA = re.compile(r"\s*(,|$)")
_BARE = re.compile(r"[^,()\s\"'=]+")


def _called(client: Client, query: str) -> tuple[str, dict[str, Any]]:
    """The operation and its arguments. Raises ResourceMissing, QueryFailed for what cannot be read."""
    match = _NAME.match(query)
    known = list(client.binding.all())
    if match is None or match[1] not in known:
        name = match[1] if match else query
        raise ResourceMissing(
            f"the service has no operation '{name}'.{nearest(name, known)}",
            hint=f"its operations: {', '.join(known[:20])}",
        )
    rest = query[match.end() :].strip()
    try:
        return match[1], _arguments(rest)
    except ValueError as error:
        raise QueryFailed(
            f"the arguments of {match[1]} cannot be read",
            why=str(error),
            hint=f'write them as {match[1]}(from="2024-01-01", page=1), or as a JSON object',
        ) from None


def _arguments(text: str) -> dict[str, Any]:
    """`(a="x", b=1)`, `({"a": "x"})` or `{"a": "x"}`. Raises ValueError."""
    if not text:
        return {}
    inner = text[1:-1].strip() if text.startswith("(") and text.endswith(")") else text
    if inner.startswith("{"):
        found = json.loads(inner, parse_float=Decimal)
        return dict(found)
    if inner is text:
        raise ValueError(f"unexpected: {text[:40]}")
    decoder = json.JSONDecoder(parse_float=Decimal)
    arguments: dict[str, Any] = {}
    place = 0
    while place < len(inner):
        match = _ASSIGNED.match(inner, place)
        if match is None:
            raise ValueError(f"no name=value at: {inner[place : place + 40]}")
        if match[1] in arguments:
            raise ValueError(f"{match[1]} is given twice")
        arguments[match[1]], place = _argument(decoder, inner, match.end())
        comma = _COMMA.match(inner, place)
        if comma is None:
            raise ValueError(f"a comma is missing at: {inner[place : place + 40]}")
        place = comma.end()
    return arguments


def _argument(decoder: json.JSONDecoder, text: str, place: int) -> tuple[Any, int]:
    if text.startswith("'", place):
        end = text.find("'", place + 1)
        if end < 0:
            raise ValueError("a quote is not closed")
        return text[place + 1 : end], end + 1
    if text.startswith(CURSOR, place):
        return CURSOR, place + len(CURSOR)
    if text[place : place + 1] in ('"', "{", "["):
        value, end = decoder.raw_decode(text, place)
        return value, end
    match = _BARE.match(text, place)
    if match is None:
        raise ValueError(f"no value at: {text[place : place + 40]}")
    # a number keeps the form it is written in: 007 may be an article
    return {"true": True, "false": False, "null": None}.get(match[0], match[0]), match.end()


#: What an argument is written as that takes the place reached.
CURSOR = "{cursor}"


def _placed(value: Any, cursor: Cursor) -> Any:
    """The arguments with the cursor's value in its place; without one, the argument is left out."""
    if isinstance(value, dict):
        return {
            key: placed for key, item in value.items() if (placed := _placed(item, cursor)) is not _ABSENT
        }
    if value != CURSOR:
        return value
    if cursor.start is None:
        return _ABSENT
    if cursor.type.startswith("timestamp"):
        return re.sub(r"([+-]\d\d)$", r"\1:00", cursor.start.replace(" ", "T", 1))
    return cursor.start


_ABSENT = object()


# -- reading ---------------------------------------------------------------------------------------------


def read(client: Client, query: str, cursor: Cursor) -> Iterator[IngestedItem]:
    """Call an operation and give the rows of its answer, as they arrive.

    Raises ResourceMissing, QueryFailed for a fault and for wrong arguments, ConnectionFailed, SourceData
    for an answer that is no SOAP or is cut off.
    """
    name, arguments = _called(client, query)
    arguments = _placed(arguments, cursor)
    rows = _rows_of(client, name)
    answer = _call(client, name, arguments)
    client.answers.append(answer)
    try:
        for item in _items(client, rows, _elements(client, rows, answer, name)):
            yield within(item, cursor, query)
    finally:
        client.answers.remove(answer)
        answer.close()


def _call(client: Client, name: str, arguments: dict[str, Any]) -> Any:
    """The answer of the service, its body not yet read."""
    import requests
    import zeep

    try:
        answer = answered(lambda: client.service[name](**arguments), client.closing)
    except requests.RequestException as error:
        raise unreachable(error, _address(client), client.closing.is_set()) from None
    except (zeep.exceptions.Error, TypeError, ValueError, AttributeError) as error:
        signature = client.binding.get(name).input.signature()
        raise QueryFailed(
            f"{name} cannot be called with these arguments",
            why=str(error)[:400],
            hint=f"it takes: {signature[:400] or 'nothing'}",
        ) from None
    kind = str(answer.headers.get("Content-Type", ""))
    xml = ("xml" in kind or not kind) and not kind.startswith("multipart")
    if answer.status_code != 200 and not (answer.status_code in (400, 500) and xml):
        answer.close()
        raise _http_error(answer.status_code, _address(client))
    if not xml:
        answer.close()
        what = "attachments (MTOM)" if "multipart" in kind else kind.split(";")[0]
        raise SourceData(f"the service answers with {what}, which is not read", hint="it has to be XML")
    return answer


def _address(client: Client) -> str:
    return str(client.service._binding_options.get("address") or client.config.wsdl_url)


def _http_error(status: int, url: str) -> ConnectionFailed:
    host = urlsplit(url).netloc.rpartition("@")[2]
    if status == 401:
        return ConnectionFailed(
            f"{host} does not accept the user or the password",
            layer="login",
            why="HTTP 401",
            hint="check username, password and security",
        )
    if status == 403:
        return ConnectionFailed(f"{host} does not allow it", layer="permission", why="HTTP 403")
    if status == 404:
        return ConnectionFailed(
            f"{url} is not there", layer="database", why="HTTP 404", hint="check wsdl_url and address"
        )
    return ConnectionFailed(f"{host} answered with HTTP {status}", layer="lost", hint="try again later")


def _elements(client: Client, rows: _Rows, answer: Any, name: str) -> Iterator[Any]:
    """The elements of the answer that are rows, each to be used before the next is asked for.

    Raises QueryFailed for a fault, SourceData for an answer that is no SOAP.
    """
    from lxml import etree  # type: ignore[import-untyped]

    wanted = rows.path[-1] if rows.path else "Body"
    tags = [f"{{*}}{wanted}", "{*}Fault", "{*}Body"]
    parser = etree.XMLPullParser(
        ("end",), tag=tags, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False,
        remove_comments=True, remove_pis=True,
    )  # fmt: skip
    # the document type can only stand in front of the first element
    prolog = etree.XMLPullParser(("start",), resolve_entities=False, no_network=True, load_dtd=False)
    body = False
    try:
        for chunk in _chunks(client, answer):
            if prolog is not None:
                prolog.feed(chunk)
                first = next(iter(prolog.read_events()), None)
                if first is None and b"<!ENTITY" not in chunk:
                    parser.feed(chunk)
                    continue
                if first is None or first[1].getroottree().docinfo.doctype:
                    raise SourceData(
                        f"the answer of {name} has a document type or entities, which are refused",
                        hint="they can make a small answer fill the memory",
                    )
                if answer.status_code != 200 and not _is_envelope(first[1]):
                    raise _http_error(answer.status_code, _address(client))
                if not _is_envelope(first[1]):
                    raise SourceData(
                        f"the answer of {name} is no SOAP envelope", why=f"it begins with {first[1].tag}"
                    )
                prolog = None
            parser.feed(chunk)
            for _, element in parser.read_events():
                body = body or _is_body(element)
                yield from _row_in(rows, element)
        parser.close()
    except etree.XMLSyntaxError as error:
        raise SourceData(
            f"the answer of {name} is not whole, or no XML",
            why=str(error.msg)[:300],
            hint="call it again; if it stays so, look at what the service sends",
        ) from None
    if answer.status_code != 200:
        raise _http_error(answer.status_code, _address(client))
    if not body:
        raise SourceData(f"the answer of {name} has no body")


def _chunks(client: Client, answer: Any) -> Iterator[bytes]:
    import requests

    try:
        for chunk in answer.iter_content(CHUNK_BYTES):
            if client.closing.is_set():
                raise ConnectionFailed("the read was stopped", layer="lost")
            yield chunk
    except (requests.RequestException, OSError, ValueError, AttributeError) as error:
        raise unreachable(error, _address(client), client.closing.is_set()) from None
    if client.closing.is_set():
        raise ConnectionFailed("the read was stopped", layer="lost")


def _is_envelope(element: Any) -> bool:
    return element.tag in [f"{{{space}}}Envelope" for space in ENVELOPES]


def _is_body(element: Any) -> bool:
    return element.tag in [f"{{{space}}}Body" for space in ENVELOPES]


def _row_in(rows: _Rows, element: Any) -> Iterator[Any]:
    """The row that an element is, if it is one; what has been used is taken out of the tree."""
    from dwcli.connectors._soaptypes import local

    above = [local(parent.tag) for parent in element.iterancestors()]
    if local(element.tag) == "Fault" and above == ["Body", "Envelope"]:
        raise _fault(element)
    if not rows.path:
        if _is_body(element):
            yield from element
        return
    if local(element.tag) != rows.path[-1] or _is_body(element):
        return
    # [Body, answer, …, row], the row's own name last
    below = [*above[::-1][1:], local(element.tag)]
    if rows.path in (tuple(below[2:]), tuple(below[1:])) or (
        not rows.known and tuple(below[-len(rows.path) :]) == rows.path
    ):
        yield element
        parent = element.getparent()
        element.clear()
        while element.getprevious() is not None:
            del parent[0]


#: Codes of WS-Security that say who called, not what.
NOT_LET_IN = ("FailedAuthentication", "InvalidSecurity", "InvalidSecurityToken", "FailedCheck")


def _fault(element: Any) -> QueryFailed | ConnectionFailed:
    """A fault of SOAP 1.1 or 1.2 in our words."""
    from dwcli.connectors._soaptypes import local

    found = {local(inner.tag): (inner.text or "").strip() for inner in element.iter()}
    said = found.get("faultstring") or found.get("Text") or "it gave no reason"
    code = found.get("faultcode") or found.get("Value") or ""
    if any(value.rpartition(":")[2] in NOT_LET_IN for value in found.values()):
        return ConnectionFailed(
            f"the service does not let in the user: {said[:400]}",
            layer="login",
            hint="check username, password and security",
        )
    return QueryFailed(f"the service refused: {said[:400]}", why=f"fault {code}" if code else "")


def _items(client: Client, rows: _Rows, elements: Iterator[Any]) -> Iterator[IngestedItem]:
    """Batches of rows. A value that the WSDL does not know begins a new batch, with one column more."""
    from dwcli.connectors._rows import RowColumn, empty_item, items
    from dwcli.connectors._soaptypes import Node, fill_for, row_of

    nodes = list(rows.columns)
    known = {node.name: node for node in nodes}
    running: dict[str, str] = {}
    held: dict[str, Any] | None = None
    sent = False

    def next_row() -> dict[str, Any] | None:
        element = next(elements, None)
        return None if element is None else row_of(element, known)

    def fetch(count: int) -> Sequence[Sequence[Any]]:
        nonlocal held
        taken: list[list[Any]] = []
        while len(taken) < count and held is not None and known.keys() >= held.keys():
            taken.append([held.get(node.name) for node in nodes])
            held = next_row()
        return taken

    held = next_row()
    while held is not None:
        for name in held:
            if name not in known:
                known[name] = Node(name, "")
                nodes.append(known[name])
        columns = [
            RowColumn(column, fill_for(node, client.config.timezone, running))
            for column, node in zip(_column_names(nodes), nodes, strict=True)
        ]
        if not columns:
            raise SourceData("the rows of the answer hold no values", hint="set data_path")
        yield from items(fetch, columns, client.config.batch_bytes)
        sent = True
    if not sent and not rows.known:
        raise SourceData(
            f"the answer holds no element {'.'.join(rows.path)}",
            hint="the WSDL does not know it either: check data_path",
        )
    if not sent:
        yield empty_item(
            [
                RowColumn(column, fill_for(node, client.config.timezone, running))
                for column, node in zip(_column_names(nodes), nodes, strict=True)
            ]
        )
