"""Go templates in the styles of those that Ollama ships and publishes, and of what people write. All written here."""

from __future__ import annotations

CHATML = """\
{{- range $i, $m := .Messages }}<|im_start|>{{ $m.Role }}
{{ $m.Content }}{{ if ne $m.Role "assistant" }}<|im_end|>
{{ else if gt (len (slice $.Messages $i)) 1 }}<|im_end|>
{{ end }}
{{- if and (eq (len (slice $.Messages $i)) 1) (ne $m.Role "assistant") }}<|im_start|>assistant
{{ end }}
{{- end }}"""

TURNS_WITH_HEADERS = """{{ if .System }}<|system|>
{{ .System }}<|end|>
{{ end }}{{ if .Prompt }}<|user|>
{{ .Prompt }}<|end|>
{{ end }}<|assistant|>
{{ .Response }}<|end|>
"""

INSTRUCTION = """{{- if .System }}{{ .System }}

{{ end }}
{{- if .Prompt }}### Instruction:
{{ .Prompt }}

{{ end }}### Response:
{{ .Response }}

"""

SYSTEM_IN_FIRST_USER = """\
{{- $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}
{{- if not $system }}{{ $system = .Content }}
{{- else }}{{ $system = printf "%s\\n\\n%s" $system .Content }}
{{- end }}
{{- continue }}
{{- else if eq .Role "user" }}[INST] {{ if $system }}<<SYS>>
{{ $system }}
<</SYS>>

{{ $system = "" }}{{ end }}
{{- end }}
{{- .Content }}{{ if eq .Role "user" }} [/INST]{{ else }}</s><s>{{ end }}
{{- end }}"""

LIBRARY_WITH_TOOLS = """\
{{- if or .System .Tools }}<|start_header_id|>system<|end_header_id|>
{{- if .System }}

{{ .System }}
{{- end }}
{{- if .Tools }}

Answer with JSON: {"name": function, "parameters": {}}.
{{- end }}<|eot_id|>
{{- end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}
{{- if and $.Tools $last }}<|start_header_id|>user<|end_header_id|>

{{ range $.Tools }}{{ . }}
{{ end }}{{ .Content }}<|eot_id|>
{{- else }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- end }}{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>
{{- if .ToolCalls }}
{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "parameters": {{ json .Function.Arguments }}}{{ end }}
{{- else }}

{{ .Content }}
{{- end }}{{ if not $last }}<|eot_id|>{{ end }}
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>{{ if $last }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}
{{- end }}"""

LAST_USER_AND_THINKING = """\
{{- $lastUserIdx := -1 -}}
{{- range $idx, $msg := .Messages -}}
{{- if eq $msg.Role "user" }}{{ $lastUserIdx = $idx }}{{ end -}}
{{- end }}
{{- if .System }}<|im_start|>system
{{ .System }}<|im_end|>
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|im_start|>user
{{ .Content }}
{{- if and $.IsThinkSet (eq $i $lastUserIdx) }}
   {{- if $.Think -}}
      {{- " "}}/think
   {{- else -}}
      {{- " "}}/no_think
   {{- end -}}
{{- end }}<|im_end|>
{{ else if eq .Role "assistant" }}<|im_start|>assistant
{{ if (and $.IsThinkSet (and .Thinking (or $last (gt $i $lastUserIdx)))) -}}
<think>{{ .Thinking }}</think>
{{ end -}}
{{ if .Content }}{{ .Content }}{{ end }}{{ if not $last }}<|im_end|>
{{ end }}
{{- end }}
{{- if and (ne .Role "assistant") $last }}<|im_start|>assistant
{{ if and $.IsThinkSet (not $.Think) -}}
<think>

</think>

{{ end -}}
{{ end }}
{{- end }}"""

LLAMAFACTORY = (
    "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
    '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n'
    '{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
)

ODDS_AND_ENDS = (
    'a \n {{- /* {{ no }} */ -}} \n b {{ `{{ "raw" }}` }}{{ with .System }}<{{ . }}>{{ else }}none{{ end }}'
    '{{ $x := "a" }}{{ range $m := .Messages }}{{ $x }}{{ $x := "b" }}{{ $x }}{{ $x = "c" }}{{ $x }}'
    '{{ .Content | printf "%d%% %v %s" (len $.Messages) $m.Role }}{{ end }}{{ $x }}{{ "\\u4f60\\t\\"" }}'
    '{{ (index .Messages 0).Role }}{{ eq .System "x" }}{{ or .System "nothing" }}{{ not .Messages }}'
    "{{ range .Messages }}{{ break }}{{ end }}{{ ge (len .Messages) 3 }}"
)

STYLES = {
    "chatml": CHATML,
    "turns with headers": TURNS_WITH_HEADERS,
    "instruction": INSTRUCTION,
    "system in the first user": SYSTEM_IN_FIRST_USER,
    "library, with tools": LIBRARY_WITH_TOOLS,
    "last user and thinking": LAST_USER_AND_THINKING,
    "as LLaMA-Factory exports": LLAMAFACTORY,
    "turns without a response": "{{ .System }} {{ .Prompt }}:",
    "nothing but the prompt": "{{ .Prompt }}",
    "response in a block": "{{ .System }}[{{ .Prompt }}]{{ if .Response }}({{ .Response }}){{ end }}!",
    "odds and ends": ODDS_AND_ENDS,
}
"""Each by a name."""
