"""What unit and workflow tests share."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

# The same examples in every run; HYPOTHESIS_PROFILE=default looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def new_bucket() -> Iterator[Callable[[], str]]:
    """Makes empty S3 buckets: call it for a store's address.

    A real server, reached over HTTP; the environment leads this process and its children to it.
    """
    import fsspec
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")

        def make() -> str:
            name = f"bucket-{secrets.token_hex(6)}"
            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(name)
            return f"s3://{name}/store"

        yield make
    server.stop()
