"""What users of other clients do: `python foreign_client.py FAMILY BASE_URL MODEL` prints one JSON line.

Runs in an environment that has that client and nothing else. FAMILY: a name of FAMILIES.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

Told = dict[str, Any]
KEY = "unused"


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sun in {city}"


def langchain(url: str, model: str) -> Told:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import create_model

    chat = ChatOpenAI(base_url=url, api_key=KEY, model=model, max_retries=0)
    city = create_model("City", name=(str, ...), people=(int, ...))
    whole = chat.invoke("hello")
    pieces = list(chat.stream("hello"))
    tools = chat.bind_tools([weather])
    embeddings = OpenAIEmbeddings(base_url=url, api_key=KEY, model="small", check_embedding_ctx_length=False)
    return {
        "whole": [whole.content, whole.usage_metadata],
        "stream": [[piece.content, piece.usage_metadata] for piece in pieces],
        "tools": tools.invoke("hello").tool_calls,
        "tools streamed": [piece.tool_call_chunks for piece in tools.stream("hello")],
        "structured": chat.with_structured_output(city).invoke("hello").model_dump(),
        "embeddings": embeddings.embed_documents(["a"]),
    }


def pydantic_ai(url: str, model: str) -> Told:
    from pydantic import create_model
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    city = create_model("City", name=(str, ...), people=(int, ...))
    served = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key=KEY))

    async def all_of_it() -> Told:
        whole = await Agent(served).run("hello")
        async with Agent(served).run_stream("hello") as answer:
            pieces = [piece async for piece in answer.stream_text(delta=True, debounce_by=None)]
        used = await Agent(served, tools=[weather]).run("hello")
        return {
            "whole": [whole.output, str(whole.usage)],
            "stream": pieces,
            "tools": [[type(part).__name__ for part in message.parts] for message in used.all_messages()],
            "structured": (await Agent(served, output_type=NativeOutput(city)).run("hello")).output.model_dump(),
        }

    return asyncio.run(all_of_it())


def instructor(url: str, model: str) -> Told:
    import instructor
    import openai
    from pydantic import create_model

    city = create_model("City", name=(str, ...), people=(int, ...))
    told: Told = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(base_url=url, api_key=KEY, max_retries=0), mode=mode)
        asked: Told = {"model": model, "messages": [{"role": "user", "content": "hello"}], "response_model": city}
        told[str(mode)] = client.chat.completions.create(**asked, max_retries=0).model_dump()
        told[f"{mode} streamed"] = [part.model_dump() for part in client.chat.completions.create_partial(**asked)]
    return told


def openai_agents(url: str, model: str) -> Told:
    import openai
    from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled

    set_tracing_disabled(True)

    async def all_of_it() -> Told:
        client = openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0)
        served = OpenAIChatCompletionsModel(model=model, openai_client=client)
        agent = Agent(name="one", model=served, tools=[function_tool(weather)])
        whole = await Runner.run(agent, "hello")
        streamed = Runner.run_streamed(agent, "hello")
        events = [event.type async for event in streamed.stream_events()]
        return {
            "whole": [whole.final_output, [type(item).__name__ for item in whole.new_items]],
            "tokens": whole.context_wrapper.usage.total_tokens,
            "stream": [streamed.final_output, events],
        }

    return asyncio.run(all_of_it())


def litellm(url: str, model: str) -> Told:
    import litellm

    def asked(**extra: Any) -> Any:
        messages = [{"role": "user", "content": "hello"}]
        return litellm.completion(model=f"openai/{model}", api_base=url, api_key=KEY, messages=messages, **extra)

    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    return {
        "whole": [asked().choices[0].message.content, asked().usage.total_tokens],
        "stream": [piece.choices[0].delta.content for piece in asked(stream=True)],
        "tools": [call.function.arguments for call in asked(tools=[tool]).choices[0].message.tool_calls],
    }


FAMILIES: dict[str, Callable[[str, str], Told]] = {
    "langchain-openai": langchain,
    "pydantic-ai-slim[openai]": pydantic_ai,
    "instructor": instructor,
    "openai-agents": openai_agents,
    "litellm": litellm,
}

if __name__ == "__main__":
    print(json.dumps(FAMILIES[sys.argv[1]](sys.argv[2], sys.argv[3]), default=str, sort_keys=True))
