// Measures a proxy to Ollama: an engine that answers at once, and a client with a fixed rate of requests.
//
//	proxy engine ADDRESS
//	proxy load URL TOKEN BODY RATE SECONDS CONNECTIONS
//
// The client prints one line of JSON, with latencies in milliseconds. It is compiled, so that it needs little of the
// processor time that it shares with the proxy.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	digest = "0000000000000000000000000000000000000000000000000000000000000000"
	parts  = 8 // of a streamed answer
)

type measured struct {
	total, first []float64 // milliseconds to the end and to the first byte of each answer
	failed       int
}

func main() {
	if len(os.Args) > 2 && os.Args[1] == "engine" {
		log.Fatal(http.ListenAndServe(os.Args[2], engine()))
	}
	if len(os.Args) != 8 || os.Args[1] != "load" {
		log.Fatal("usage: proxy engine ADDRESS | proxy load URL TOKEN BODY RATE SECONDS CONNECTIONS")
	}
	rate, connections := number(os.Args[5]), int(number(os.Args[7]))
	result := load(os.Args[2], os.Args[3], os.Args[4], rate, number(os.Args[6]), connections)
	if err := json.NewEncoder(os.Stdout).Encode(result); err != nil {
		log.Fatal(err)
	}
}

func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// engine answers as Ollama does, without a model: what a pod needs to start, and the same tokens for each prompt.
func engine() http.Handler {
	mux := http.NewServeMux()
	var name string
	reply := func(path, body string) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, body) })
	}
	reply("/api/version", `{"version": "0.34.0"}`)
	reply("/api/blobs/", "")
	models := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"models": [{"name": %q, "digest": %q}]}`, name, digest)
	}
	mux.HandleFunc("/api/tags", models)
	mux.HandleFunc("/api/ps", models)
	mux.HandleFunc("/api/create", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Model string }
		_ = json.NewDecoder(r.Body).Decode(&body)
		name = body.Model
		fmt.Fprint(w, "{}")
	})
	mux.HandleFunc("/api/generate", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Model  string
			Stream bool
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		end := fmt.Sprintf(`{"model": %q, "response": "", "done": true, "done_reason": "stop", `+
			`"prompt_eval_count": 400, "eval_count": 8}`+"\n", body.Model)
		if !body.Stream {
			w.Header().Set("Content-Type", "application/json; charset=utf-8")
			fmt.Fprint(w, end)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		for i := 0; i < parts; i++ {
			fmt.Fprintf(w, `{"model": %q, "response": " name", "done": false}`+"\n", body.Model)
			w.(http.Flusher).Flush()
		}
		fmt.Fprint(w, end)
	})
	return mux
}

// load sends requests at a fixed rate, spread over connections that are kept open, and measures the answers.
//
// A request that its connection could not send in time counts from the time at which it was due.
func load(url, token, body string, rate, seconds float64, connections int) map[string]float64 {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}, Timeout: 60 * time.Second}
	interval := time.Duration(float64(connections) / rate * float64(time.Second))
	begin := time.Now().Add(100 * time.Millisecond)
	end := begin.Add(time.Duration(seconds * float64(time.Second)))
	results := make([]measured, connections)
	var group sync.WaitGroup
	for i := range results {
		group.Add(1)
		go func(result *measured, due time.Time) {
			defer group.Done()
			for ; due.Before(end); due = due.Add(interval) {
				started := due
				if wait := time.Until(due); wait > 0 {
					time.Sleep(wait)
					started = time.Now()
				}
				first, err := send(client, url, token, body)
				if err != nil {
					log.Print(err)
					result.failed++
					continue
				}
				result.first = append(result.first, milliseconds(first.Sub(started)))
				result.total = append(result.total, milliseconds(time.Since(started)))
			}
		}(&results[i], begin.Add(interval*time.Duration(i)/time.Duration(connections)))
	}
	group.Wait()
	var all measured
	for _, result := range results {
		all.total, all.first = append(all.total, result.total...), append(all.first, result.first...)
		all.failed += result.failed
	}
	sort.Float64s(all.total)
	sort.Float64s(all.first)
	return map[string]float64{
		"answers": float64(len(all.total)), "failed": float64(all.failed), "p50": quantile(all.total, 0.5),
		"p99": quantile(all.total, 0.99), "first_p50": quantile(all.first, 0.5), "first_p99": quantile(all.first, 0.99),
	}
}

// send returns the time of the answer's first byte when the answer is complete.
func send(client *http.Client, url, token, body string) (time.Time, error) {
	request, err := http.NewRequest("POST", url, strings.NewReader(body))
	if err != nil {
		return time.Time{}, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := client.Do(request)
	if err != nil {
		return time.Time{}, err
	}
	defer response.Body.Close()
	buffer := make([]byte, 1)
	if _, err = io.ReadFull(response.Body, buffer); err != nil {
		return time.Time{}, err
	}
	first := time.Now()
	rest, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != 200 || !strings.Contains(string(rest), `"done": true`)) {
		err = fmt.Errorf("status %d: %s", response.StatusCode, rest)
	}
	return first, err
}

func milliseconds(duration time.Duration) float64 { return float64(duration.Microseconds()) / 1000 }

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(q*float64(len(sorted)-1))]
}
