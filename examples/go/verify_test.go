package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"
)

type vector struct {
	Name, Method   string
	Target         string `json:"path_and_query"`
	Body           string `json:"body_base64"`
	Headers        map[string]string
	Key            string `json:"key_hex"`
	Created        int64
	Digest         string `json:"content_digest"`
	SignatureInput string `json:"signature_input"`
	Signature      string
}

func (v vector) request() *http.Request {
	r := &http.Request{Method: v.Method, RequestURI: v.Target, Header: http.Header{}}
	for name, value := range v.Headers {
		r.Header.Set(name, value)
	}
	r.Header.Set("Content-Digest", v.Digest)
	r.Header.Set("Signature-Input", v.SignatureInput)
	r.Header.Set("Signature", v.Signature)
	return r
}

// The vectors that backjob's own tests are held to.
func TestVectors(t *testing.T) {
	file, err := os.ReadFile("../../tests/vectors/signatures.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(file, &vectors); err != nil || len(vectors) == 0 {
		t.Fatal("no vectors", err)
	}
	for _, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			body, bodyErr := base64.StdEncoding.DecodeString(v.Body)
			key, keyErr := hex.DecodeString(v.Key)
			if bodyErr != nil || keyErr != nil {
				t.Fatal(bodyErr, keyErr)
			}
			at := time.Unix(v.Created, 0)
			if err := verify(v.request(), body, key, at); err != nil {
				t.Error(err)
			}
			wrong := map[string]func(r *http.Request){
				"method":     func(r *http.Request) { r.Method = "PUT" },
				"path":       func(r *http.Request) { r.RequestURI = "/other" },
				"query":      func(r *http.Request) { r.RequestURI += "&more" },
				"attempt":    func(r *http.Request) { r.Header.Set("Backjob-Attempt", "3") },
				"two ids":    func(r *http.Request) { r.Header.Add("Backjob-Job-Id", "x") },
				"no token":   func(r *http.Request) { r.Header.Del("Backjob-Report-Token") },
				"signature":  func(r *http.Request) { r.Header.Set("Signature", "backjob=:AAAA:") },
				"not signed": func(r *http.Request) { r.Header.Del("Signature") },
				"uncovered":  func(r *http.Request) { r.Header.Set("Signature-Input", `backjob=("@method")`) },
			}
			for name, change := range wrong {
				r := v.request()
				if change(r); verify(r, body, key, at) == nil {
					t.Errorf("%s: accepted", name)
				}
			}
			if verify(v.request(), append(body, 'x'), key, at) == nil {
				t.Error("another body: accepted")
			}
			if verify(v.request(), body, make([]byte, 32), at) == nil {
				t.Error("another key: accepted")
			}
			for _, late := range []time.Duration{-31 * time.Second, 331 * time.Second} {
				if verify(v.request(), body, key, at.Add(late)) == nil {
					t.Errorf("%v: accepted", late)
				}
			}
		})
	}
}
