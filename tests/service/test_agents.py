"""The tools for agents, called through the protocol."""

import asyncio
import base64
import io

import pytest
from PIL import Image

pytest.importorskip("mcp")
from mcp.client import Client

from crovca.service.agents import agent_server


def call(server, tool, **arguments):
    async def talk():
        async with Client(server) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(talk())


def test_the_tools_answer_as_the_collection_does(collection, made):
    server, ids = agent_server([collection]), made[4]
    (about,) = call(server, "list_collections").structured_content["result"]
    assert about["items"] == 400
    found = call(server, "more_like_this", collection="digits", id=ids[5], k=3, where="digit = '5'")
    hits = found.structured_content["result"]
    assert len(hits) == 3
    assert all(hit["metadata"]["digit"] == "5" for hit in hits)
    picture = call(server, "show", collection="digits", id=ids[5]).content[0]
    assert Image.open(io.BytesIO(base64.b64decode(picture.data))).format == "WEBP"


@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("more_like_this", {"collection": "none", "id": "x"}, "there is no collection"),
        ("more_like_this", {"collection": "digits", "id": "x"}, "not in the index"),
        ("more_like_this", {"collection": "digits", "id": "x", "k": 1000}, "k must be"),
        ("search_by_image", {"collection": "digits", "image_base64": "%"}, "base64"),
        ("search_by_text", {"collection": "digits", "text": "a"}, "cannot be encoded here"),
        ("show", {"collection": "digits", "id": "../index/manifest.json"}, "there is no item"),
    ],
)
def test_what_cannot_be_done_is_said(collection, tool, arguments, words):
    answer = call(agent_server([collection]), tool, **arguments)
    assert answer.is_error
    assert words in answer.content[0].text
