// Ollama's own client, a Go package. Each use gets its own base URL, and its result is printed as a line of JSON.
package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/ollama/ollama/api"
)

const (
	module                       = "github.com/ollama/ollama"
	model, jsonModel, otherModel = "hotel", "report", "unknown"
	question, system, stop       = "All hotels?", "Answer with SQL.", " ORDER"
	tokens                       = 3
	// The model is forced to answer with exactly this object.
	schema = `{"title": "Report", "type": "object", "properties": {"sql": {"type": "string", "enum": ["SELECT 1"]}},
		"required": ["sql"], "additionalProperties": false}`
	tool = `{"type": "function", "function": {"name": "rooms", "description": "Number of rooms of a hotel",
		"parameters": {"type": "object", "properties": {"hotel": {"type": "string"}}, "required": ["hotel"]}}}`
)

type use struct {
	name string
	run  func(*api.Client) (any, error)
}

type bearer string

// RoundTrip adds the token, for which the client has no setting.
func (token bearer) RoundTrip(request *http.Request) (*http.Response, error) {
	request.Header.Set("Authorization", "Bearer "+string(token))
	return http.DefaultTransport.RoundTrip(request)
}

func parts(client *api.Client, request *api.ChatRequest) ([]string, error) {
	var found []string
	err := client.Chat(context.Background(), request, func(answer api.ChatResponse) error {
		found = append(found, answer.Message.Content)
		return nil
	})
	return found, err
}

func request() *api.ChatRequest {
	return &api.ChatRequest{Model: model, Messages: []api.Message{{Role: "user", Content: question}}}
}

// chat is a use that sends a request with a change and returns the whole answer.
func chat(change func(*api.ChatRequest)) func(*api.Client) (any, error) {
	return func(client *api.Client) (any, error) {
		asked := request()
		asked.Stream = new(bool)
		change(asked)
		found, err := parts(client, asked)
		return strings.Join(found, ""), err
	}
}

// object is a use like chat, whose answer is JSON.
func object(change func(*api.ChatRequest)) func(*api.Client) (any, error) {
	return func(client *api.Client) (any, error) {
		text, err := chat(change)(client)
		if err != nil {
			return nil, err
		}
		return json.RawMessage(text.(string)), nil
	}
}

func after(role string) func(*api.Client) (any, error) {
	return chat(func(asked *api.ChatRequest) {
		asked.Messages = append([]api.Message{{Role: role, Content: system}}, asked.Messages...)
	})
}

func list(client *api.Client) (any, error) {
	listed, err := client.List(context.Background())
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range listed.Models {
		names = append(names, entry.Name)
	}
	return names, nil
}

func show(client *api.Client) (any, error) {
	shown, err := client.Show(context.Background(), &api.ShowRequest{Model: model})
	if err != nil {
		return nil, err
	}
	for name, value := range shown.ModelInfo {
		if strings.HasSuffix(name, ".context_length") {
			return value, nil
		}
	}
	return nil, nil
}

func complete(client *api.Client) (any, error) {
	var text strings.Builder
	asked := &api.GenerateRequest{Model: model, Prompt: question}
	err := client.Generate(context.Background(), asked, func(answer api.GenerateResponse) error {
		text.WriteString(answer.Response)
		return nil
	})
	return text.String(), err
}

func stream(client *api.Client) (any, error) { return parts(client, request()) }

func embeddings(client *api.Client) (any, error) {
	return client.Embed(context.Background(), &api.EmbedRequest{Model: model, Input: question})
}

func main() {
	options := func(values map[string]any) func(*api.ChatRequest) {
		return func(asked *api.ChatRequest) { asked.Options = values }
	}
	uses := []use{
		{"list", list},
		{"show", show},
		{"complete", complete},
		{"chat", chat(func(*api.ChatRequest) {})},
		{"stream", stream},
		{"json", object(func(asked *api.ChatRequest) { asked.Model, asked.Format = jsonModel, json.RawMessage(`"json"`) })},
		{"schema", object(func(asked *api.ChatRequest) { asked.Format = json.RawMessage(schema) })},
		{"tokens", chat(options(map[string]any{"temperature": 0, "num_ctx": 4096, "num_predict": tokens}))},
		{"stop", chat(options(map[string]any{"temperature": 0, "seed": 1, "stop": []string{stop}}))},
		{"system", after("system")},
		{"developer", after("developer")},
		{"keep_alive", chat(func(asked *api.ChatRequest) { asked.KeepAlive = &api.Duration{Duration: 10 * time.Minute} })},
		{"wrong_token", chat(func(*api.ChatRequest) {})},
		{"unknown_model", chat(func(asked *api.ChatRequest) { asked.Model = otherModel })},
		{"embeddings", embeddings},
		{"tools", chat(func(asked *api.ChatRequest) {
			asked.Tools = make(api.Tools, 1)
			check(json.Unmarshal([]byte(tool), &asked.Tools[0]))
		})},
	}
	output := json.NewEncoder(os.Stdout)
	for _, use := range uses {
		token := os.Getenv("CLIENT_TOKEN")
		if use.name == "wrong_token" {
			token = "wrong"
		}
		base, err := url.Parse(os.Getenv("CLIENT_ENDPOINT") + "/ollama-go/" + use.name)
		check(err)
		line := map[string]any{"client": "ollama-go", "version": version(), "use": use.name}
		result, err := use.run(api.NewClient(base, &http.Client{Transport: bearer(token)}))
		if err != nil {
			line["error"] = err.Error()
		} else {
			line["result"] = result
		}
		check(output.Encode(line))
	}
}

func version() string {
	build, _ := debug.ReadBuildInfo()
	for _, dependency := range build.Deps {
		if dependency.Path == module {
			return strings.TrimPrefix(dependency.Version, "v")
		}
	}
	return ""
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
