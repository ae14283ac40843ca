"""A server with OpenAI's interface, whoever wrote it: vLLM, SGLang and their plugins, DeepSeek's, `flagrelease serve`.

    async with EndpointClient(endpoint) as client:        # client.py
        reply = await client.chat(ChatAsk(messages, max_tokens=64))
        if isinstance(reply, Unsupported): ...            # the server cannot, and why

    for ask, reply in ask_each(endpoint, asks, EndpointClient.chat): ...   # queue.py: many at once

address.py: where it is. transport.py: HTTP, and what passes by itself. asks.py: what is asked. replies.py: what comes
back.
reading.py, scored.py, assembled.py: JSON to replies. answerer.py: exams.
"""
