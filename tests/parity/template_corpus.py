"""Chat templates in the manner of the families that people run, written for these tests, and conversations for them."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says what it\'s like <outside> & "when" für 東京',
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}, "chance": {"type": "number", "default": 1e-7}},
            "required": ["place"],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "weather", "arguments": {"place": "Köln", "p": 0.5}},
        }
    ],
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"sky": "grey"}'}
USER = {"role": "user", "content": 'Hi <b>there</b> & "you"\'s'}
ANSWER = {"role": "assistant", "content": "<think>\nhm\n</think>\n\n  Hello!\n"}
UNICODE = {"role": "user", "content": "Größe 東京 🙂 \u00a0\n"}
SYSTEM = {"role": "system", "content": "Be brief. "}

CONVERSATIONS: dict[str, tuple[list[Message], dict[str, Any]]] = {
    "one": ([USER], {"add_generation_prompt": True}),
    "turns": ([USER, ANSWER, UNICODE], {"add_generation_prompt": True}),
    "system": ([SYSTEM, USER, ANSWER, UNICODE], {"add_generation_prompt": True}),
    "no-prompt": ([SYSTEM, USER, ANSWER], {}),
    "tools": ([SYSTEM, USER], {"tools": [WEATHER, WEATHER], "add_generation_prompt": True}),
    "calls": ([USER, CALL, RESULT, ANSWER, UNICODE], {"tools": [WEATHER], "add_generation_prompt": True}),
    "empty-text": ([{"role": "user", "content": ""}], {"add_generation_prompt": True}),
    "continue": ([USER, {"role": "assistant", "content": "I would say "}], {"continue_final_message": True}),
    "thinking": ([USER], {"enable_thinking": False, "add_generation_prompt": True}),
    "reasoning": ([USER, {"role": "assistant", "content": "a", "reasoning": "why"}, UNICODE], {}),
    "two-users": ([USER, UNICODE], {"add_generation_prompt": True}),
}


def _markers(start: str, end: str, last: str) -> str:
    """The plain loop over turns: what stands before and after each, and what asks for an answer."""
    return (
        "{% for message in messages %}{{ '" + start + "' }}{{ message['content'] }}{{ '" + end + "' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + last + "' }}{% endif %}"
    )


_CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
)
_ALTERNATE = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
)

TEMPLATES: dict[str, str] = {
    "chatml": _CHATML + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "chatml-default-system": "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}"
    "{% endif %}" + _CHATML,
    "chatml-macro": """
{%- macro turn(m, last=false) -%}
<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>{{ '' if last else '\n' }}
{%- endmacro -%}
{%- for m in messages -%}{{ turn(m, last=loop.last) }}{%- endfor -%}""",
    "llama-2": """
{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}
    {%- set system_message = messages[0]['content'] %}
{%- else %}
    {%- set loop_messages = messages %}
    {%- set system_message = false %}
{%- endif %}
{%- for message in loop_messages %}
    """
    + _ALTERNATE
    + """
    {%- if loop.index0 == 0 and system_message != false %}
        {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}
        {%- set content = message['content'] %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- eos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' '  + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}""",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = eos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-3-tools": """
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{% endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("single tool-calls only") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}""",
    "mistral": "{{ bos_token }}{% for message in messages %}"
    + _ALTERNATE
    + "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    "mistral-tools": """
{%- set ns = namespace(index=0) %}
{%- set loop_messages = messages if messages[0]["role"] != "system" else messages[1:] %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- for message in loop_messages | rejectattr("role", "equalto", "tool") %}
    {%- if message["role"] == "user" or (message["role"] == "assistant" and message.tool_calls is undefined) %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.index }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}{{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}{{- raise_exception("nine characters") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {%- if message.content is defined and message.content.content is defined %}{%- set content = message.content.content %}
        {%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content | string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}""",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    + _ALTERNATE
    + "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "gemma-3": """
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}{%- set first = messages[0]['content'] + '\n\n' -%}
    {%- else -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first = "" -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}""",
    "phi-3": "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "phi-4-mini": "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}",
    "qwen-tools": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>}<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "deepseek": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    "{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none and message.tool_calls is undefined %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{{'<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}"
    "{%- endfor -%}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}",
    "granite": """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}{%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Knowledge Cutoff Date: April 2024. You are Granite." %}{%- set loop_messages = messages %}
    {%- if tools and documents %}{%- set system_message = system_message + " Both." %}
    {%- elif tools %}{%- set system_message = system_message + " Tools." %}{%- endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' }}{{- tools | tojson(indent=4) }}{{- '<|end_of_text|>\n' }}{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
    {%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}
{%- endfor %}""",
    "command-r": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}"
    "{% if system_message != false %}{{ '<|SYSTEM_TOKEN|>' + system_message + '<|END|>' }}{% endif %}"
    "{% for message in loop_messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'user' %}{{ '<|USER_TOKEN|>' + content.strip() + '<|END|>' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|CHATBOT_TOKEN|>'  + content.strip() + '<|END|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|CHATBOT_TOKEN|>' }}{% endif %}",
    "command-r-tools": """
{%- macro kind_of(spec) -%}
    {%- set map = {"string": "str", "number": "float", "integer": "int"} -%}
    {{- map[spec.type] if spec.type in map else "Any" -}}
{%- endmacro -%}
{%- for tool in tools or [] %}
def {{ tool.function.name }}(
    {%- for name, spec in tool.function.parameters.properties | dictsort -%}
        {{ name }}: {{ kind_of(spec) }}{{ ' = %s' % spec.default if spec.default is defined }}{{ ", " if not loop.last }}
    {%- endfor %}) -> List[Dict]:
    \"\"\"{{ tool.function.description }}\"\"\"
    pass
{% endfor %}""",
    "smollm3": """
{%- set reasoning = '/no_think' if enable_thinking is defined and not enable_thinking else '/think' -%}
{%- if messages[0].role == "system" -%}
    {%- set system_message = messages[0].content -%}
    {%- if "/no_think" in system_message -%}{%- set reasoning = "/no_think" -%}{%- endif -%}
    {%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
<|im_start|>system
Knowledge Cutoff Date: June 2025
Reasoning Mode: {{ reasoning }}
{% if custom -%}{{ custom }}{%- endif %}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}{{ "<|im_start|>" + message.role + "\n" + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" -%}
        {%- generation -%}
        {%- if reasoning == "/think" -%}{{ "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- else -%}{{ "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") + "<|im_end|>\n" }}{%- endif -%}
        {%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}""",
    "olmo": "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\n' }}"
    "{% if not loop.last %}{{ message['content'] + eos_token + '\n' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}",
    "glm": "[gMASK]<sop>{%- for message in messages %}{%- if message.role == 'system' %}<|system|>\n{{ message.content }}"
    "{%- elif message.role == 'user' %}<|user|>\n{{ message.content }}{%- else %}<|{{ message.role }}|>{{ message.metadata }}\n"
    "{{ message.content.strip() }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|assistant|>{%- endif %}",
    "vicuna": "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "alpaca": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n\n{% else %}### "
    "{{ 'Instruction' if m.role == 'user' else 'Response' }}:\n{{ m.content | trim }}\n\n{% endif %}{% endfor %}",
    "plain": _markers("", "\\n", ""),
    "star": _markers("* ", "\\n", "* "),
    "quoted": _markers("\\'", "\\'", ">"),
    "percent": "{{ '%s turns, %d, %5.2f|%-6s|%06d' % (messages | length, 7, 1.5, 'ab', 42) }}{{ ' %s' % messages[0].content | upper }}",
    "percent-loop": "{% for m in messages %}{{ '<%s>%s</%s>' % (m.role, m['content'], m.role) }}{% endfor %}{{ 17 % 5 }}",
    "justified": "{% for m in messages %}{{ m.role.ljust(10) }}|{{ m.role.rjust(11, '.') }}|{{ m.role.center(12, '*') }}|"
    "{{ m.role.center(9) }}|{{ '-42'.zfill(6) }}\n{% endfor %}",
    "floats": "{{ 1e-7 }} {{ 0.1 + 0.2 }} {{ 1.0 }} {{ 1e16 }} {{ 100000.0 * 3 }} {{ 7 / 2 }} {{ 2.5 | string }} "
    "{{ [1e-7, 1.0] | tojson }} {{ 3 // 2 }} {{ 2 ** 10 }} {{ (10 / 4) | round | int }}",
    "tojson-arguments": "{{ messages | tojson(true) }}|{{ messages | tojson(false, 2) }}|{{ messages | tojson(indent=1, sort_keys=true) }}|"
    "{{ {'b': 1, 'a': ['é', none]} | tojson(ensure_ascii=True, separators=(',', ':')) }}",
    "tojson-tools": "{% for t in tools or [] %}{{ t | tojson }}\n{{ t.function.parameters | tojson(indent=2) }}{% endfor %}",
    "items": "{% for m in messages %}{% for k, v in m.items() %}{{ k }}:{{ v }};{% endfor %}{{ m.get('x', 'none') }}\n{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ loop.index }}/{{ loop.length }}"
    "{{ loop.revindex }}{{ loop.first }}{{ loop.last }}{{ loop.previtem.role if loop.previtem is defined }}"
    "{% if loop.index > 2 %}{% break %}{% endif %},{% else %}none{% endfor %}",
    "namespace": "{% set ns = namespace(out='', n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}"
    "{% set ns.out = ns.out ~ m.role[0] %}{% endfor %}{{ ns.out }}{{ ns.n }}{{ namespace(a=1).a }}",
    "strings": "{% for m in messages %}{{ m.content.upper() }}{{ m.content.title() }}{{ m.content.split() | join('_') }}"
    "{{ m.content.find('t') }}{{ m.content.count('e') }}{{ m.content[:3] }}{{ m.content[-2:] }}{{ m.content[::-1] }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | unique | list | join(',') }}|{{ messages | map(attribute='content') | map('length') | sum }}|"
    "{{ messages | selectattr('role', 'in', ['user']) | list | length }}|{{ (messages | first).role }}|{{ (messages | last).role }}|"
    "{{ messages[0].content | replace('H', 'J') | lower | capitalize }}|{{ undefined_name | default('dflt') }}|{{ 'x' | indent(2) }}",
    "tests": "{{ messages is iterable }}{{ messages is sequence }}{{ messages[0] is mapping }}{{ messages[0].content is string }}"
    "{{ 3 is number }}{{ none is none }}{{ tools is none }}{{ nope is undefined }}{{ 4 is divisibleby 2 }}{{ true is boolean }}",
    "literals": "{{ none }} {{ true }} {{ [1, 'a', none, true, 1.5] }} {{ {'a': 1} }} {{ ('x', 2) }} {{ 'it\\'s' }} {{ [\"it's\"] }}",
    "whitespace": "\n  {% for m in messages %}  \n   {{- m.role -}}   \n  {% endfor %}  \n{# note #}\n tail  ",
    "raw": "{% raw %}{{ not a tag }}{% endraw %}{{ bos_token }}{{ '{{' }}{% filter upper %}{{ messages[0].role }}{% endfilter %}",
    "macro-defaults": "{% macro f(a, b='B', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, c=2) }}{{ f(b=1, a=2) }}",
    "date": "{{ strftime_now('%Y-%m') }} {{ strftime_now('%d %b %Y') }}",
    "call-block": "{% macro wrap() %}<{{ caller() }}>{% endmacro %}{% call wrap() %}{{ messages[0].role }}{% endcall %}",
}
