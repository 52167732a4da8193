"""The containers to try a source on, and the guide to them: the form of both. No container is started."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from dwcli import connectors

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES = COMPOSE["services"]
SOURCES = sorted(name for name, service in SERVICES.items() if service.get("profiles"))
GUIDE = (ROOT / "docs" / "guides" / "try-a-source.md").read_text("utf-8")
CONFIGS = dict(re.findall(r"^### (\w+)\n.*?```yaml\n(.*?)```", GUIDE, re.M | re.S))


def test_without_a_profile_the_warehouse_alone_is_started():
    assert [name for name, service in SERVICES.items() if not service.get("profiles")] == ["warehouse"]


def test_every_kind_of_server_is_there_and_in_the_guide():
    databases = {"postgres", "mysql", "mssql", "oracle", "clickhouse", "mongodb", "cassandra", "neo4j"}
    streams = {"kafka", "rabbitmq", "nats", "redis", "mqtt"}
    assert set(SOURCES) == databases | streams | {"s3", "ftp", "sftp", "webdav"} == set(CONFIGS)


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_a_pinned_image_on_this_machine_alone_that_says_when_it_is_ready(name):
    service = SERVICES[name]
    assert service["profiles"] == [name]
    if not service["image"].startswith("${"):  # else its user says which
        _, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d", tag), "an image without a version is another one tomorrow"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["healthcheck"]["test"] and service["healthcheck"]["retries"]


def test_no_two_containers_want_one_port():
    ports = [port.rpartition(":")[0] for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("name", SOURCES)
def test_the_config_of_the_guide_is_one(name, monkeypatch):
    monkeypatch.setenv("DW_TRY_PASSWORD", "dw-try-Source1")
    config = YAML(typ="safe").load(CONFIGS[name])
    if config["protocol"] not in connectors.names():
        pytest.skip("there is no such connector yet")
    config.pop("pipelines")
    made = connectors.create_connector(config)
    address = getattr(made.config, "port", None)
    published = {port.rpartition(":")[0].rpartition(":")[2] for port in SERVICES[name]["ports"]}
    assert address is None or str(address) in published
