package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What a trigger's signature covers.
var covered = []string{
	"@method", "@path", "@query", "content-digest",
	"backjob-job-id", "backjob-attempt", "backjob-report-url", "backjob-report-token",
}

// How far the clocks of both processes may differ.
const skew = 30 * time.Second

// verify tells whether backjob sent this request: an HMAC-SHA256 signature in
// the form of RFC 9421 under the target's trigger key. It covers method, path,
// query, body and the Backjob-* headers; others prove nothing. A copied request
// stays good until it expires: who must refuse that too remembers the nonces.
func verify(r *http.Request, body, key []byte, now time.Time) error {
	input, err := member(r.Header, "Signature-Input")
	if err != nil {
		return err
	}
	encoded, err := member(r.Header, "Signature")
	if err != nil {
		return err
	}
	signature, err := base64.StdEncoding.DecodeString(strings.Trim(encoded, ":"))
	if err != nil {
		return errors.New("Signature is not base64")
	}

	// ("@method" "@path" ...);created=1;expires=2;nonce="...";keyid="..."
	list, params, found := strings.Cut(strings.TrimPrefix(input, "("), ")")
	if !found {
		return errors.New("Signature-Input is malformed")
	}
	components := strings.Fields(list)
	for i, component := range components {
		components[i] = strings.Trim(component, `"`)
	}
	for _, name := range covered {
		if !slices.Contains(components, name) {
			return fmt.Errorf("the signature does not cover %s", name)
		}
	}
	if len(components) != len(covered) {
		return errors.New("the signature covers what a trigger does not have")
	}

	// The bytes of the request line, since r.URL.Path is decoded.
	path, query, _ := strings.Cut(r.RequestURI, "?")
	var base strings.Builder
	for _, name := range components {
		value := ""
		switch name {
		case "@method":
			value = r.Method
		case "@path":
			value = path
		case "@query":
			value = "?" + query
		default:
			if value, err = single(r.Header, name); err != nil {
				return err
			}
		}
		fmt.Fprintf(&base, "\"%s\": %s\n", name, value)
	}
	fmt.Fprintf(&base, "\"@signature-params\": %s", input)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(base.String()))
	if !hmac.Equal(signature, mac.Sum(nil)) {
		return errors.New("the signature does not match")
	}

	// From here on all values are known to be backjob's own.
	var created, expires int64
	for _, param := range strings.Split(params, ";") {
		name, value, _ := strings.Cut(param, "=")
		switch name {
		case "created":
			created, err = strconv.ParseInt(value, 10, 64)
		case "expires":
			expires, err = strconv.ParseInt(value, 10, 64)
		}
		if err != nil {
			return errors.New("Signature-Input is malformed")
		}
	}
	if now.Add(skew).Unix() < created || now.Add(-skew).Unix() > expires {
		return errors.New("the signature is not good at this time")
	}
	digest := sha256.Sum256(body)
	if r.Header.Get("Content-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(digest[:])+":" {
		return errors.New("the body is not the one that was signed")
	}
	return nil
}

// member is the value of the label "backjob" in a header of which it is the
// only member, as backjob sends it.
func member(headers http.Header, name string) (string, error) {
	value, err := single(headers, name)
	if err != nil {
		return "", err
	}
	value, found := strings.CutPrefix(value, "backjob=")
	if !found {
		return "", fmt.Errorf("%s is not backjob's", name)
	}
	return value, nil
}

// single is the value of a header that must stand exactly once: of two, the
// check could read one and the application the other.
func single(headers http.Header, name string) (string, error) {
	values := headers.Values(name)
	if len(values) != 1 {
		return "", fmt.Errorf("%s must stand once", name)
	}
	return strings.TrimSpace(values[0]), nil
}
