// A sidecar: says 200 for the canary, 204 for main. docs/how-to/sidecar.md explains it.
//
//	go run sidecar.go [ADDRESS:PORT]
package main

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"log"
	"net/http"
	"os"
)

const percent = 10 // of the users

// The rule. This is what you write.
func isForCanary(r *http.Request) bool {
	if r.Header.Get("X-Plan") == "beta" {
		return true
	}
	if cookie, err := r.Cookie("beta"); err == nil && cookie.Value == "yes" {
		return true
	}
	user := r.Header.Get("X-User-Id")
	sum := sha256.Sum256([]byte(user))
	return user != "" && binary.BigEndian.Uint32(sum[:4])%100 < percent
}

func answer(w http.ResponseWriter, r *http.Request) {
	// What is not read costs the connection.
	_, _ = io.Copy(io.Discard, r.Body)
	// Questions are below /decide, so no client's path is this one.
	if r.URL.Path == "/health" || isForCanary(r) {
		w.WriteHeader(http.StatusOK)
	} else {
		w.WriteHeader(http.StatusNoContent)
	}
}

func main() {
	address := "127.0.0.1:8083"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	// No ServeMux: it redirects paths that it would write otherwise.
	log.Fatal(http.ListenAndServe(address, http.HandlerFunc(answer)))
}
