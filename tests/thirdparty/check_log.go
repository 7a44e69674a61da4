// Checks a running ledger's transparency log with Go's own libraries for these formats (golang.org/x/mod/sumdb): the
// signed checkpoint, and every proof made from tiles that the library asks for and authenticates by itself.
//
//	go run check_log.go URL VKEY < proofs.json
//
// proofs.json: {"inclusion": [{"size", "index", "leaf", "proof"}], "consistency": [{"old", "new", "proof"}]}, hashes in
// hexadecimal: the proofs that the ledger's own API gives. Prints one line and exits 0, or says what is wrong.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type proofs struct {
	Inclusion []struct {
		Size, Index int64
		Leaf        string
		Proof       []string
	}
	Consistency []struct {
		Old, New int64
		Proof    []string
	}
}

type tiles struct{ url string }

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		// "tile/8/0/x001/067.p/3": C2SP tlog-tiles leaves the height out
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		found = append(found, get(t.url+"/"+path))
	}
	return found, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func get(url string) []byte {
	response, err := http.Get(url)
	check(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	check(err)
	if response.StatusCode != 200 {
		log.Fatalf("%s: %s: %s", url, response.Status, body)
	}
	return body
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func hash(text string) tlog.Hash {
	var value tlog.Hash
	raw, err := hex.DecodeString(text)
	check(err)
	if copy(value[:], raw) != tlog.HashSize {
		log.Fatalf("%q is no hash", text)
	}
	return value
}

func hashes(texts []string) []tlog.Hash {
	var values []tlog.Hash
	for _, text := range texts {
		values = append(values, hash(text))
	}
	return values
}

func main() {
	log.SetFlags(0)
	url, vkey := os.Args[1], os.Args[2]
	var given proofs
	check(json.NewDecoder(os.Stdin).Decode(&given))

	verifier, err := note.NewVerifier(vkey)
	check(err)
	opened, err := note.Open(get(url+"/checkpoint"), note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		log.Fatalf("the checkpoint is of %q", lines[0])
	}
	var size int64
	_, err = fmt.Sscanf(lines[1], "%d", &size)
	check(err)
	var root tlog.Hash
	check(root.UnmarshalJSON([]byte(`"` + lines[2] + `"`)))
	// go.sum-style trees begin with this header; ours has the same three facts in another order
	tree := tlog.Tree{N: size, Hash: root}

	// The reader fetches tiles and refuses each that does not lead to the root.
	reader := tlog.TileHashReader(tree, tiles{url})
	rootOf := func(n int64) tlog.Hash {
		value, err := tlog.TreeHash(n, reader)
		check(err)
		return value
	}
	if rootOf(size) != root {
		log.Fatal("the tiles make another root")
	}
	for _, item := range given.Inclusion {
		check(tlog.CheckRecord(tlog.RecordProof(hashes(item.Proof)), item.Size, rootOf(item.Size), item.Index, hash(item.Leaf)))
		stored, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, item.Index)})
		check(err)
		if stored[0] != hash(item.Leaf) {
			log.Fatalf("leaf %d is another one in the tiles", item.Index)
		}
		made, err := tlog.ProveRecord(item.Size, item.Index, reader)
		check(err)
		if fmt.Sprint(made) != fmt.Sprint(tlog.RecordProof(hashes(item.Proof))) {
			log.Fatalf("the inclusion proof of %d is another one", item.Index)
		}
	}
	for _, item := range given.Consistency {
		check(tlog.CheckTree(tlog.TreeProof(hashes(item.Proof)), item.New, rootOf(item.New), item.Old, rootOf(item.Old)))
	}
	fmt.Printf("size %d: %d inclusion and %d consistency proofs\n", size, len(given.Inclusion), len(given.Consistency))
}
