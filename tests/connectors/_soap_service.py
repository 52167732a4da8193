"""A SOAP service for tests: a WSDL, and whatever answer a test puts into it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ORDER = """
      <xs:element name="id" type="xs:long"/>
      <xs:element name="name" type="xs:string" nillable="true" minOccurs="0"/>
      <xs:element name="total" type="t:Money" minOccurs="0"/>
      <xs:element name="day" type="xs:date" minOccurs="0"/>
      <xs:element name="at" type="xs:dateTime" minOccurs="0"/>
      <xs:element name="clock" type="xs:time" minOccurs="0"/>
      <xs:element name="paid" type="xs:boolean" minOccurs="0"/>
      <xs:element name="weight" type="xs:double" minOccurs="0"/>
      <xs:element name="big" type="xs:unsignedLong" minOccurs="0"/>
      <xs:element name="lasts" type="xs:duration" minOccurs="0"/>
      <xs:element name="seal" type="xs:base64Binary" minOccurs="0"/>
      <xs:element name="mark" type="xs:hexBinary" minOccurs="0"/>
      <xs:element name="buyer" type="t:Buyer" minOccurs="0"/>
      <xs:element name="tag" type="xs:string" minOccurs="0" maxOccurs="unbounded"/>
"""

SCHEMA = f"""
<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" targetNamespace="urn:shop" xmlns:t="urn:shop"
  elementFormDefault="qualified">
  <xs:simpleType name="Money"><xs:restriction base="xs:decimal">
    <xs:fractionDigits value="4"/></xs:restriction>
  </xs:simpleType>
  <xs:complexType name="Buyer"><xs:sequence>
    <xs:element name="name" type="xs:string"/><xs:element name="limit" type="xs:decimal" minOccurs="0"/>
    <xs:element name="phone" type="xs:string" minOccurs="0" maxOccurs="5"/>
  </xs:sequence><xs:attribute name="vip" type="xs:boolean"/></xs:complexType>
  <xs:complexType name="Order"><xs:sequence>{ORDER}</xs:sequence><xs:attribute name="no" type="xs:int"/>
  </xs:complexType>
  <xs:complexType name="Orders"><xs:sequence>
    <xs:element name="order" type="t:Order" minOccurs="0" maxOccurs="unbounded"/></xs:sequence>
  </xs:complexType>
  <xs:element name="GetOrders"><xs:complexType><xs:sequence>
    <xs:element name="from" type="xs:date" minOccurs="0"/>
    <xs:element name="since" type="xs:dateTime" minOccurs="0"/>
    <xs:element name="page" type="xs:int" minOccurs="0"/>
    <xs:element name="filter" type="t:Buyer" minOccurs="0"/></xs:sequence></xs:complexType></xs:element>
  <xs:element name="GetOrdersResponse"><xs:complexType><xs:sequence>
    <xs:element name="count" type="xs:int" minOccurs="0"/><xs:element name="orders" type="t:Orders"/>
  </xs:sequence></xs:complexType></xs:element>
  <xs:element name="GetOne"><xs:complexType><xs:sequence>
    <xs:element name="id" type="xs:long"/></xs:sequence></xs:complexType></xs:element>
  <xs:element name="GetOneResponse"><xs:complexType><xs:sequence>
    <xs:element name="id" type="xs:long"/><xs:element name="total" type="xs:decimal"/>
  </xs:sequence></xs:complexType></xs:element>
  <xs:element name="GetNames"><xs:complexType/></xs:element>
  <xs:element name="GetNamesResponse"><xs:complexType><xs:sequence>
    <xs:element name="name" type="xs:string" maxOccurs="unbounded"/></xs:sequence>
  </xs:complexType></xs:element>
  <xs:element name="GetAny"><xs:complexType/></xs:element>
  <xs:element name="GetAnyResponse"><xs:complexType><xs:sequence>
    <xs:any processContents="skip"/></xs:sequence></xs:complexType></xs:element>
</xs:schema>
"""

OPERATIONS = ("GetOrders", "GetOne", "GetNames", "GetAny")


def wsdl(url: str, head: str = "", schema: str = SCHEMA) -> str:
    """The WSDL: one service with a port of SOAP 1.1 and one of SOAP 1.2."""
    messages = "".join(
        f'<message name="{name}{way}"><part name="parameters" element="t:{name}{way}"/></message>'
        for name in OPERATIONS
        for way in ("", "Response")
    )
    operations = "".join(
        f'<operation name="{name}"><input message="t:{name}"/>'
        f'<output message="t:{name}Response"/></operation>'
        for name in OPERATIONS
    )

    def binding(version: str) -> str:
        bound = "".join(
            f'<operation name="{name}"><{version}:operation soapAction="urn:shop#{name}"/>'
            f'<input><{version}:body use="literal"/></input><output><{version}:body use="literal"/></output>'
            f"</operation>"
            for name in OPERATIONS
        )
        return (
            f'<binding name="B{version}" type="t:P"><{version}:binding style="document"'
            f' transport="http://schemas.xmlsoap.org/soap/http"/>{bound}</binding>'
        )

    return f"""<?xml version="1.0" encoding="UTF-8"?>{head}
<definitions xmlns="http://schemas.xmlsoap.org/wsdl/" xmlns:s11="http://schemas.xmlsoap.org/wsdl/soap/"
  xmlns:s12="http://schemas.xmlsoap.org/wsdl/soap12/"
  xmlns:xs="http://www.w3.org/2001/XMLSchema" xmlns:t="urn:shop" targetNamespace="urn:shop">
<types>{schema}</types>{messages}<portType name="P">{operations}</portType>{binding("s11")}{binding("s12")}
<message name="Rpc"><part name="page" type="xs:int"/></message>
<message name="RpcResponse"><part name="result" type="t:Orders"/></message>
<portType name="R"><operation name="Rpc"><input message="t:Rpc"/><output message="t:RpcResponse"/></operation>
</portType><binding name="Brpc" type="t:R"><s11:binding style="rpc"
  transport="http://schemas.xmlsoap.org/soap/http"/><operation name="Rpc"><s11:operation soapAction=""/>
<input><s11:body use="literal" namespace="urn:shop"/></input>
<output><s11:body use="literal" namespace="urn:shop"/></output></operation></binding>
<service name="Shop"><port name="one" binding="t:Bs11"><s11:address location="{url}/one"/></port>
<port name="two" binding="t:Bs12"><s12:address location="{url}/two"/></port>
<port name="rpc" binding="t:Brpc"><s11:address location="{url}/one"/></port></service></definitions>"""


SPACES = {
    "/one": "http://schemas.xmlsoap.org/soap/envelope/",
    "/two": "http://www.w3.org/2003/05/soap-envelope",
}


@dataclass
class Service:
    """What the service answers, and what it was asked."""

    url: str = ""
    #: content of the Body of the answer, or pieces of it
    body: str | Callable[[], Iterator[str]] = ""
    status: int = 200
    #: sent instead of an envelope
    raw: bytes | None = None
    content_type: str = "text/xml; charset=utf-8"
    user: tuple[str, str] | None = None
    head: str = ""
    schema: str = SCHEMA
    #: bytes of the answer after which the connection is cut, or the service waits for `waiting`
    cut: bool = False
    stall: threading.Event | None = None
    #: the service says nothing until this is set
    silent: threading.Event | None = None
    stalled: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    service: Service

    def log_message(self, format: str, *values: object) -> None:
        pass

    def let_in(self) -> bool:
        user = self.service.user
        if user is None:
            return True
        wanted = "Basic " + base64.b64encode(":".join(user).encode()).decode()
        if self.headers["Authorization"] == wanted:
            return True
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def do_GET(self) -> None:
        if not self.let_in():
            return
        if self.path == "/shop?wsdl":
            text = wsdl(self.service.url, self.service.head, self.service.schema).encode()
            self.send_response(200)
        else:
            text = b"not here"
            self.send_response(404)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self) -> None:
        service = self.service
        service.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        service.headers.append(dict(self.headers.items()))
        if not self.let_in():
            return
        if service.silent is not None:
            service.stalled.set()
            service.silent.wait(60)
            return
        self.send_response(service.status)
        self.send_header("Content-Type", service.content_type)
        if service.cut:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        if service.raw is not None:
            self.wfile.write(service.raw)
            return
        space = SPACES[self.path]
        self.wfile.write(f'<e:Envelope xmlns:e="{space}" xmlns="urn:shop"><e:Body>'.encode())
        for piece in [service.body] if isinstance(service.body, str) else service.body():
            self.wfile.write(piece.encode())
        if service.stall is not None:
            self.wfile.flush()
            service.stalled.set()
            service.stall.wait(60)
        elif not service.cut:
            self.wfile.write(b"</e:Body></e:Envelope>")


@contextmanager
def serving() -> Iterator[Service]:
    """A service at a port of its own."""
    service = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"service": service}))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
