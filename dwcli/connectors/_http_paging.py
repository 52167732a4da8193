"""From one page to the next: how a source pages, found in its first answer or as configured.

    link       the Link header names the next page
    next_url   a field of the body is the next page's address
    links      a list of links in the body has one with `"rel": "next"`
    cursor     a field of the body goes into a parameter of the next request
    last_id    `has_more`, and the last row's id goes into a parameter
    page       the page's number goes up by one
    offset     the offset goes up by the rows that came
    relay      GraphQL: pageInfo.endCursor goes into the variable `after`
    none       there is one page

What is not sure is not guessed: where an answer shows that there is more, and not how to get it, the read
ends with an error.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from dwcli.connectors import _http_body as body_of
from dwcli.connectors._http_body import at, fields, first_byte, scalar, whole_number
from dwcli.connectors._http_send import Answer, Client, Request, allowed, send, with_parameters
from dwcli.errors import QueryFailed, ResourceMissing, SourceData
from dwcli.log import get_logger

if TYPE_CHECKING:
    from dwcli.connectors.http import Config

#: More empty pages one after the other than this are no way to an end.
MOST_EMPTY_PAGES = 100
#: Modes in which the source's rows may move from page to page.
_COUNTED = ("page", "offset")
#: Pages larger than this, in bytes, are not looked through for rows that come again.
_MOST_COMPARED = 4 * 1024 * 1024

#: Objects of an answer in which its paging is described, "" being the answer itself.
_PLACES = (
    "", "meta", "pagination", "paging", "meta.pagination", "meta.page", "page", "pageInfo", "page_info",
    "info", "links", "_links", "_meta", "response_metadata", "cursor", "cursors", "paging.cursors",
    "paging.next",
)  # fmt: skip
_NEXT_URLS = (
    "next", "next.href", "next_url", "nextUrl", "next_page_url", "nextPageUrl", "next_link", "nextLink",
    "@odata.nextLink", "odata.nextLink", "next_page", "nextPage", "next_href", "nextRecordsUrl",
)  # fmt: skip
#: field of the answer → parameter of the request
_CURSORS = {
    "next_cursor": "cursor", "nextCursor": "cursor", "next_page_token": "page_token",
    "nextPageToken": "pageToken", "next_token": "next_token", "nextToken": "nextToken",
    "NextToken": "NextToken", "continuation_token": "continuation_token",
    "continuationToken": "continuationToken", "next_page": "page", "nextPage": "page",
    "next_offset": "offset", "nextOffset": "offset", "end_cursor": "after", "after": "after",
    "next_page_id": "page_id", "scroll_id": "scroll_id", "bookmark": "bookmark", "cursor": "cursor",
}  # fmt: skip
_MORE = ("has_more", "hasMore", "has_next", "hasNext", "has_next_page", "hasNextPage", "more")
_TOTALS = (
    "total", "total_count", "totalCount", "total_results", "totalResults", "total_items", "totalItems",
    "total_records", "totalRecords", "total_elements", "totalElements",
)  # fmt: skip
_NUMBERS = ("page", "current_page", "currentPage", "page_number", "pageNumber", "number")
_LAST = ("total_pages", "totalPages", "last_page", "lastPage", "page_count", "pageCount", "pages")
_OFFSETS = ("offset", "skip", "startAt", "start")
_TOTAL_HEADERS = ("x-total-count", "x-total", "x-wp-total")
_LAST_HEADERS = ("x-total-pages", "x-wp-totalpages")
#: Fields that mean that there is more, where nothing tells how to use them.
_UNCLEAR = ("next", "next_id", "nextId", "next_key", "nextKey", "next_marker", "NextMarker")
#: Fields that are null, or not there, on the last page.
_ENDS = ("next", "next_url", "nextUrl", "next_link", "nextLink", "next_page_url", "nextPageUrl", *_CURSORS)
#: Content-Range: 0-99/250, as PostgREST sends it with every answer
_RANGE = re.compile(r"\d+-\d+/(?:\d+|\*)")
_AFTER = re.compile(r"\$(\w*after\w*)\s*:", re.IGNORECASE)

_log = get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """How one resource pages."""

    mode: str
    #: the parameter that carries the page, offset or cursor
    param: str = ""
    #: where the answer names what comes next
    path: str = ""
    #: whether pages count from 0
    from_zero: bool = False


@dataclass(frozen=True)
class Page:
    """One page: its rows as JSON, and how many there are."""

    answer: Answer
    body: Any
    #: an array, one object, or None
    rows: Any
    count: int
    #: where paging may be described → the fields there
    places: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: the first and the last row, as JSON
    first: Any = None
    last: Any = None
    #: field of each element that holds the row itself: GraphQL's `node`
    node: str = ""
    #: what could not stay as it was in the body, and how many values
    changed: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Walk:
    """How far a read of pages has come, and what tells that it goes in a circle."""

    name: str
    pages: int = 0
    rows: int = 0
    #: how many rows there are, as the last page says
    total: int | None = None
    #: every request so far
    asked: set[str] = field(default_factory=set)
    #: a digest of the last page's rows, and these rows where they are not many
    mark: bytes = b""
    last_rows: bytes = b""
    empty: int = 0


def pages(client: Client, request: Request, data_path: str, name: str) -> Iterator[Page]:
    """Every page from this request on, each fetched when it is asked for.

    Raises what `send` raises; SourceData for pages that turn in a circle, for one without the rows' path,
    and for fewer rows than the source says it has.
    """
    config, walk, path = client.config, _Walk(name), data_path
    plan: Plan | None = None
    next_request: Request | None = _first(config, request)
    endpoint = urlsplit(request.url).path.rstrip("/").rpartition("/")[2]
    while next_request is not None:
        request = next_request
        here = _step(walk, request, config)
        try:
            answer = send(client, request, here)
        except (ResourceMissing, QueryFailed) as error:
            if plan and plan.mode in _COUNTED and _beyond(error):
                break  # some servers answer so behind the last page
            raise
        page, path = _page(answer, request, path, endpoint, here, config)
        plan = plan or _plan(config, request, page, here)
        _look_back(walk, page, plan, here)
        next_request = _following(config, plan, request, page, walk.rows, here)
        yield page
    if walk.total is not None and walk.rows < walk.total and config.check_total:
        raise SourceData(
            f"{name}: {walk.rows:,} rows came, where the source says that it has {walk.total:,}",
            why="rows may have been deleted while they were read, or the paging is not as configured",
            hint="run it again; if the total counts something else: check_total: false",
        )


def _step(walk: _Walk, request: Request, config: Config) -> str:
    """Count the request, and give the page's name for messages. Raises SourceData for one sent before."""
    walk.pages += 1
    key = f"{request.url} {sorted(request.variables.items())}"
    if key in walk.asked:
        raise _loop(walk, "it was asked for before")
    if walk.pages > config.max_pages:
        raise _loop(walk, f"max_pages is {config.max_pages:,}")
    walk.asked.add(key)
    return walk.name if walk.pages == 1 else f"{walk.name}, page {walk.pages:,}"


def _look_back(walk: _Walk, page: Page, plan: Plan, name: str) -> None:
    """Compare a page with the one before. Raises SourceData for the same one, or too many without rows."""
    few = page.count and memoryview(page.rows).nbytes < _MOST_COMPARED
    rows = bytes(page.rows) if few else b""
    mark = rows or (hashlib.blake2b(memoryview(page.rows)).digest() if page.count else b"")
    if page.count and mark == walk.mark:
        raise _loop(walk, "it has the same rows as the one before")
    walk.empty = 0 if page.count else walk.empty + 1
    if walk.empty > MOST_EMPTY_PAGES:
        raise _loop(walk, f"{MOST_EMPTY_PAGES} pages in a row were empty")
    walk.mark, walk.rows = mark, walk.rows + page.count
    if plan.mode not in _COUNTED:
        return
    walk.total = _total(page)
    if walk.last_rows and page.count and bytes(page.first) in walk.last_rows:
        _log.warning("%s begins with a row of the page before: the source changes as it is read", name)
    walk.last_rows = rows


def _beyond(error: Exception) -> bool:
    why = str(getattr(error, "why", ""))
    return isinstance(error, ResourceMissing) or why.startswith(("status 400", "status 416"))


def _loop(walk: _Walk, why: str) -> SourceData:
    return SourceData(
        f"{walk.name}: pagination loop at page {walk.pages:,}: {why}",
        hint="set pagination and page_param to what the API's documentation says",
    )


def _first(config: Config, request: Request) -> Request:
    """The first request; page numbers are told from the start, so that nobody has to assume the first."""
    if config.pagination != "page" or request.graphql:
        return request
    param = config.page_param or "page"
    given = dict(parse_qsl(urlsplit(request.url).query)).get(param)
    return request if given else replace(request, url=with_parameters(request.url, {param: "1"}))


def _page(
    answer: Answer, request: Request, path: str, endpoint: str, name: str, config: Config
) -> tuple[Page, str]:
    """The page in an answer, and the path under which its rows were found."""
    size = max(64 * 1024, config.batch_bytes // 4)
    if answer.status == 204:
        return Page(answer, None, None, 0), path
    kind = answer.headers.get("content-type", "").lower()
    lines = "ndjson" in kind or "jsonl" in kind or "json-lines" in kind
    changed: dict[str, int] = {}
    body = body_of.checked(body_of.array_of_lines(answer.body) if lines else answer.body, name, changed)
    if request.graphql:
        page, path = _connection(answer, body, path, name, size)
        return replace(page, changed=changed), path
    found = body_of.find_rows(body, path, endpoint, name)
    count, first, last = body_of.surveyed(found.rows, size)
    # An optional path stays optional; one that was found is fixed.
    page = Page(answer, body, found.rows, count, _places(body), first, last, changed=changed)
    return page, path or found.path


def _places(body: Any) -> dict[str, Mapping[str, Any]]:
    """The objects of an answer in which its paging may be described."""
    found = {"": fields(body)}
    for place in _PLACES[1:]:
        above, _, name = place.rpartition(".")
        inside = fields(found.get(above, {}).get(name))
        if inside:
            found[place] = inside
    return found


# -- finding out ---------------------------------------------------------------------------------------


def _plan(config: Config, request: Request, page: Page, name: str) -> Plan:
    if request.graphql:
        return _relay_plan(request, page, name)
    param, path = config.page_param, config.next_path
    match config.pagination:
        case "link" | "none" as mode:
            return Plan(mode)
        case "next_url":
            if not path:
                path = _named(page, _NEXT_URLS)
            return Plan("next_url", path=_needed(path, "next_path", name, page))
        case "cursor":
            path = path or _named(page, tuple(_CURSORS))
            known = _CURSORS.get(path.rpartition(".")[2], "cursor")
            return Plan("cursor", param or known, _needed(path, "next_path", name, page))
        case "page":
            return Plan("page", param or "page", path, _number(page) == 0)
        case "offset":
            return Plan("offset", param or "offset", path)
    return _found_plan(config, request, page, name)


def _needed(path: str, key: str, name: str, page: Page) -> str:
    if path:
        return path
    if body_of.first_byte(page.body) == "[" or not page.body:
        raise SourceData(f"{name}: the answer is a list, which has no field for the next page")
    return ""  # no such field: this is the only page


def _found_plan(config: Config, request: Request, page: Page, name: str) -> Plan:
    """How the source pages, from the marks that APIs leave; more reliable ones first."""
    param = config.page_param
    if page.answer.next_link:
        return Plan("link")
    if first_byte(page.rows) == "{":
        return _NONE
    if config.next_path:
        value = scalar(at(page.body, config.next_path))
        if isinstance(value, str) and _is_address(value):
            return Plan("next_url", path=config.next_path)
        known = _CURSORS.get(config.next_path.rpartition(".")[2], "cursor")
        return Plan("cursor", param or known, config.next_path)
    if path := _named(page, _NEXT_URLS, _is_address):
        return Plan("next_url", path=path)
    if _linked(page):
        return Plan("links")
    if path := _named(page, tuple(_CURSORS)):
        return Plan("cursor", param or _CURSORS[path.rpartition(".")[2]], path)
    given = dict(parse_qsl(urlsplit(request.url).query))
    if (number := _number(page)) is not None and (last := _last_page(page)) is not None:
        more = last > number + (0 if number else 1)
        return (
            Plan("page", param or _param(given, _NUMBERS, "page"), from_zero=number == 0) if more else _NONE
        )
    if (offset := _named(page, _OFFSETS)) and (_total(page) is not None or _more(page)):
        return Plan("offset", param or offset.rpartition(".")[2])
    if _RANGE.search(page.answer.headers.get("content-range", "")):
        return Plan("offset", param or "offset")
    if _ended(page):
        return _NONE
    for names, mode in ((("page", "page_number", "pageNumber"), "page"), (_OFFSETS, "offset")):
        if used := _param(given, names, ""):
            return Plan(mode, param or used, from_zero=mode == "page" and given[used] == "0")
    if _more(page) and not param and at(page.last, "id") is not None:
        return Plan("last_id", "starting_after")
    total = _total(page)
    if _more(page) or _named(page, _UNCLEAR) or (total is not None and total > page.count and page.count > 0):
        raise SourceData(
            f"{name}: there are more rows than this page has, and how to get them is not clear",
            why=f"{page.count:,} rows of {total:,}" if total is not None else "the answer says so",
            hint="set pagination (page, offset, cursor, next_url) and page_param; "
            "pagination: none reads this page alone",
        )
    return _NONE


_NONE = Plan("none")


def _is_address(value: str) -> bool:
    return value.startswith(("http://", "https://", "/", "?"))


def _param(given: dict[str, str], names: tuple[str, ...], default: str) -> str:
    return next((name for name in names if name in given), default)


def _named(page: Page, names: tuple[str, ...], fits: Callable[[str], bool] = bool) -> str:
    """The path of the first of these fields that has a value which `fits`, where paging is described."""
    for place, inside in page.places.items():
        for name in names:
            head, _, rest = name.partition(".")
            value = inside.get(name)
            if value is None and rest and head in inside:
                value = at(inside[head], rest)
            text = scalar(value)
            if isinstance(text, str) and text and fits(text):
                return f"{place}.{name}" if place else name
    return ""


def _number_at(page: Page, names: tuple[str, ...]) -> int | None:
    for inside in page.places.values():
        for name in names:
            if (value := whole_number(inside.get(name))) is not None:
                return value
    return None


def _number(page: Page) -> int | None:
    return _number_at(page, _NUMBERS)


def _header_number(page: Page, names: tuple[str, ...]) -> int | None:
    texts = [page.answer.headers.get(name, "") for name in names]
    return next((int(text) for text in texts if text.isdigit()), None)


def _last_page(page: Page) -> int | None:
    found = _number_at(page, _LAST)
    return found if found is not None else _header_number(page, _LAST_HEADERS)


def _total(page: Page) -> int | None:
    found = _number_at(page, _TOTALS)
    return found if found is not None else _header_number(page, _TOTAL_HEADERS)


def _more(page: Page) -> bool | None:
    for inside in page.places.values():
        for name in _MORE:
            if isinstance(value := scalar(inside.get(name)), bool):
                return value
    return None


def _linked(page: Page) -> str:
    """The next page's address in a list of links: [{"rel": "next", "href": …}]; "" where there is none."""
    for key in ("links", "link"):
        links = page.places.get("", {}).get(key)
        if links is None or first_byte(links) != "[":
            continue
        for rows, _ in body_of.rows_in(links, key, len(memoryview(links)) + 1):
            for link in rows:
                if scalar(link.get("rel", link.get("relation"))) == "next":
                    return str(scalar(link.get("href", link.get("url"))) or "")
    return ""


def _ended(page: Page) -> bool:
    """Whether the answer says by itself that this is the last page: `has_more` is false, `next` is null."""
    nothing = ("", None, False, "0")
    named = [value for inside in page.places.values() for name in _ENDS if (value := inside.get(name))]
    return _more(page) is False or bool(
        named and all(first_byte(value) not in "{[" and scalar(value) in nothing for value in named)
    )


# -- going on -------------------------------------------------------------------------------------------


def _following(
    config: Config, plan: Plan, request: Request, page: Page, rows_so_far: int, name: str
) -> Request | None:
    """The request for the page behind this one, or None at the end."""
    match plan.mode:
        case "link":
            return _led(config, request, page, page.answer.next_link, name)
        case "next_url":
            value = scalar(at(page.body, plan.path)) if plan.path else None
            return _led(config, request, page, value if isinstance(value, str) else "", name)
        case "links":
            return _led(config, request, page, _linked(page), name)
        case "cursor":
            value = scalar(at(page.body, plan.path)) if plan.path else None
            if not isinstance(value, str) or value in ("", "0") or _more(page) is False:
                return None
            return replace(request, url=with_parameters(request.url, {plan.param: value}))
        case "last_id":
            last = scalar(at(page.last, "id"))
            if not _more(page) or not isinstance(last, str):
                return None
            return replace(request, url=with_parameters(request.url, {plan.param: last}))
        case "page" | "offset":
            return _counted(plan, request, page, rows_so_far)
        case "relay":
            info = at(page.body, plan.path)
            if scalar(at(info, "hasNextPage")) is not True:
                return None
            end = scalar(at(info, "endCursor"))
            if not isinstance(end, str):
                raise SourceData(
                    f"{name}: pageInfo has a next page, and no endCursor", hint="ask for endCursor"
                )
            return replace(request, variables={**request.variables, plan.param: end})
    return None


def _led(config: Config, request: Request, page: Page, link: str, name: str) -> Request | None:
    if not link:
        return None
    target = allowed(config, page.answer.url, link, "the next page", name)
    return replace(request, url=target)


def _counted(plan: Plan, request: Request, page: Page, rows_so_far: int) -> Request | None:
    """The next page by number or offset. Only an empty page, or the answer's own word, is the end.

    A page with few rows is no end: servers give fewer than they are asked for.
    """
    if not page.count or _ended(page):
        return None
    total = _total(page)
    if total is not None and rows_so_far >= total > page.count:
        return None
    given = dict(parse_qsl(urlsplit(request.url).query)).get(plan.param, "")
    if plan.mode == "offset":
        value = (int(given) if given.isdigit() else 0) + page.count
    else:
        number = _number(page)
        value = int(given) if given.isdigit() else (1 if number is None else number)
        last = _last_page(page)
        if last is not None and value + plan.from_zero >= last:
            return None
        value += 1
    return replace(request, url=with_parameters(request.url, {plan.param: str(value)}))


# -- GraphQL --------------------------------------------------------------------------------------------


def _connection(answer: Answer, body: Any, path: str, name: str, size: int) -> tuple[Page, str]:
    """The rows of a GraphQL answer: `nodes` or `edges` of the first connection, or a list."""
    body_of.refuse_error(body, name)
    optional = path.endswith("?")
    path = path.removesuffix("?") or _connection_path(at(body, "data"), "data")
    inside = at(body, path) if path else None
    node, rows = "", None
    if inside is not None and at(inside, "nodes") is not None:
        rows = at(inside, "nodes")
    elif inside is not None and at(inside, "edges") is not None:
        node, rows = "node", at(inside, "edges")
    else:
        found = body_of.find_rows(body, path or "", "", name)
        rows, path = found.rows, path or found.path
    if rows is not None and first_byte(rows) == "n":
        rows = None
    count, _, _ = body_of.surveyed(rows, size)
    return Page(answer, body, rows, count, node=node), path + ("?" if optional else "")


def _connection_path(value: Any, path: str, depth: int = 5) -> str:
    """Where the outermost object with `nodes` or `edges` stands; "" where there is none."""
    inside = body_of.fields(value)
    if "nodes" in inside or "edges" in inside:
        return path
    found = (_connection_path(v, f"{path}.{k}", depth - 1) for k, v in inside.items() if depth)
    return next((p for p in found if p), "")


def _relay_plan(request: Request, page: Page, name: str) -> Plan:
    path = _connection_path(at(page.body, "data"), "data")
    info = f"{path}.pageInfo"
    if not path or at(page.body, info) is None:
        return _NONE
    declared = _AFTER.search(request.graphql)
    if declared is None:
        if scalar(at(page.body, f"{info}.hasNextPage")) is True:
            raise QueryFailed(
                f"{name}: there are more pages, and the query cannot ask for them",
                hint="declare a variable: query ($after: String) { … (first: 100, after: $after) … }",
            )
        return _NONE
    return Plan("relay", declared[1], info)
