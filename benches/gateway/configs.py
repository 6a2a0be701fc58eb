"""Configuration of each proxy in front of the mock upstream: keep-alive both ways, no logging, no TLS, one worker."""

from __future__ import annotations

import json
from pathlib import Path

# What a client may ask for, and what the mock upstream is asked for then.
EXPLICIT, PACED = "mock", "mock-paced"
AUTO, AUTO_PACED = "auto", "auto-paced"

# name, USD per million tokens in and out, ability in logits: three models among which a learned choice means something
SIZES = (("", 0.15, 0.6, -0.3), ("-middle", 1.1, 4.4, 0.8), ("-large", 3.0, 15.0, 1.8))


def nginx(port: int, upstream: int, folder: Path) -> str:
    return f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx-error.log crit;
events {{ worker_connections 2048; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; client_body_buffer_size 64k; tcp_nodelay on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream mock {{
    server 127.0.0.1:{upstream};
    keepalive 128; keepalive_requests 1000000000; keepalive_timeout 1h;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


def envoy(port: int, upstream: int) -> str:
    """JSON, which Envoy reads as YAML."""

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    def typed(name: str, **fields: object) -> dict[str, object]:
        return {"@type": f"type.googleapis.com/{name}", **fields}

    filters = "envoy.extensions.filters"
    router = {"name": "router", "typed_config": typed(f"{filters}.http.router.v3.Router", suppress_envoy_headers=True)}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "mock", "timeout": "0s"}}
    manager = typed(
        f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="in", generate_request_id=False, http_filters=[router],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )  # fmt: skip
    thresholds = {"max_connections": 4096, "max_pending_requests": 4096, "max_requests": 4096}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}]
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {"name": "in", "address": address(port), "filter_chains": [chain]}
    cluster = {
        "name": "mock", "type": "STATIC", "connect_timeout": "1s", "circuit_breakers": {"thresholds": [thresholds]},
        "load_assignment": {"cluster_name": "mock", "endpoints": endpoints},
    }  # fmt: skip
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1)


def litellm(upstream: int) -> str:
    """JSON, which LiteLLM reads as YAML."""
    models = [
        {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": f"http://127.0.0.1:{upstream}/v1",
                                                "api_key": "none"}}
        for name in (EXPLICIT, PACED)
    ]  # fmt: skip
    return json.dumps({"model_list": models, "litellm_settings": {"telemetry": False}}, indent=1)


def polyroute(port: int, upstream: int, folder: Path) -> str:
    """Three models of different price and ability behind `auto`, the same three paced; journal and metrics on."""
    text = f"""
[server]
host = "127.0.0.1"
port = {port}

[journal]
path = "{folder}/journal.sqlite"

[policies.auto]
trade_off = 0.3
models = ["mock", "mock-middle", "mock-large"]

[policies.{AUTO_PACED}]
trade_off = 0.3
models = ["mock-paced", "mock-paced-middle", "mock-paced-large"]
"""
    for target in (EXPLICIT, PACED):
        for suffix, price_in, price_out, ability in SIZES:
            text += f"""
[[models]]
id = "{target}{suffix}"
backend = "openai"
url = "http://127.0.0.1:{upstream}/v1"
upstream_model = "{target}"
price_in = {price_in}
price_out = {price_out}
context = 128000
offers = ["tools", "json"]
ability = {{ general = {ability} }}
"""
    return text
