// Go's own text/template, for `python -m tests.oracle.derivation --go`: a line of JSON in, a line of JSON out.
//
// in:  {"template": text, "messages": [{"Role": …, "Content": …}]}, collated already
// out: {"text": …} or {"error": …}
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type job struct {
	Template string
	Messages []map[string]string
}

func render(one job) map[string]string {
	// as Ollama parses it (template/template.go)
	parsed, err := template.New("").Option("missingkey=zero").Parse(one.Template)
	if err != nil {
		return map[string]string{"error": "parse: " + err.Error()}
	}
	var text strings.Builder
	if err := parsed.Execute(&text, map[string]any{"Messages": one.Messages}); err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{"text": text.String()}
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	answers := bufio.NewWriter(os.Stdout)
	defer answers.Flush()
	for lines.Scan() {
		var one job
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			panic(err)
		}
		answer, _ := json.Marshal(render(one))
		answers.Write(append(answer, '\n'))
	}
}
