// Go's own text/template, for the commands of tests/oracle that take --go: a line of JSON in, a line of JSON out.
//
// in:  {"template": text, "root": {"Messages": …, …}, "cut": bool}; cut: what follows the first .Response is left out,
//      as Ollama leaves it out for the last turn of a template without .Messages
// out: {"text": …} or {"error": …}
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"strings"
	"text/template"
	"text/template/parse"
)

type job struct {
	Template string
	Root     map[string]any
	Cut      bool
}

func none(any) string { return "" }

// names of Ollama's functions; none of them may be reached
var functions = template.FuncMap{"json": none, "currentDate": none, "yesterday": none, "toTypeScriptType": none}

// whether a pipe has .Response among its operands
func responds(pipe *parse.PipeNode) bool {
	for _, command := range pipe.Cmds {
		for _, operand := range command.Args {
			if field, is := operand.(*parse.FieldNode); is && field.Ident[0] == "Response" {
				return true
			}
		}
	}
	return false
}

// shorten a list after the first action with .Response; whether there was one
func cut(list *parse.ListNode) bool {
	if list == nil {
		return false
	}
	for at, node := range list.Nodes {
		found := false
		switch one := node.(type) {
		case *parse.ActionNode:
			found = responds(one.Pipe)
		case *parse.IfNode:
			found = cut(one.List) || cut(one.ElseList)
		case *parse.WithNode:
			found = cut(one.List) || cut(one.ElseList)
		case *parse.RangeNode:
			found = cut(one.List) || cut(one.ElseList)
		}
		if found {
			list.Nodes = list.Nodes[:at+1]
			return true
		}
	}
	return false
}

func render(one job) map[string]string {
	// as Ollama parses it (template/template.go)
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(one.Template)
	if err != nil {
		return map[string]string{"error": "parse: " + err.Error()}
	}
	if one.Cut && parsed.Tree != nil {
		cut(parsed.Tree.Root)
	}
	var text strings.Builder
	if err := parsed.Execute(&text, one.Root); err != nil {
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
