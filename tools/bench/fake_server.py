"""In place of an SGLang server, where its time must not count: `python -m tools.bench.fake_server MODEL`.

Prints its port. Answers at once, with the same thought and action, in a batched event stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from aiohttp import web

from gigpo_mega.program import run_main
from gigpo_mega.rollout.tokenizer import Tokenizer

ANSWER = "<think>The mug is not here, so I should look somewhere else first.</think><action>look</action>"


async def serve(model: Path) -> None:
    """Answer until stdin ends."""
    tokenizer = Tokenizer(model)
    ids = [*tokenizer.encode(ANSWER), tokenizer.end(chat=True)]
    answer = {
        "output_ids": ids,
        "meta_info": {
            "finish_reason": {"type": "stop"},
            "weight_version": "0",
            "cached_tokens": 0,
            "output_token_logprobs": [[-0.5, i, None] for i in ids],
        },
    }
    rest = json.dumps(answer)[1:].encode()

    async def generate(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = len(json.loads(await request.read())["input_ids"])
        lines = [b'data: {"index": %d, ' % index + rest + b"\n\n" for index in range(count)]
        await response.write(b"".join([*lines, b"data: [DONE]\n\n"]))
        return response

    app = web.Application(client_max_size=1 << 28)
    app.router.add_post("/generate", generate)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    run_main(lambda: asyncio.run(serve(Path(sys.argv[1]))))
