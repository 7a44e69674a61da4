// Checks a receipt with Sigstore's own verifier (npm package @sigstore/verify): the checkpoint's signature and the RFC
// 6962 inclusion of the leaf, exactly as it checks an entry of its own log.
//
//   node check_receipt.js NAME KEYID KEY LEAF < receipt.json
//
// NAME: the log's origin; KEYID: 8 hexadecimal digits; KEY: the 32 bytes of the Ed25519 key, and LEAF: the leaf's bytes
// (salt, record, evidence digest), in hexadecimal. Prints one line and exits 0, or says what is wrong.
"use strict";
const crypto = require("node:crypto");
const fs = require("node:fs");
const { verifyCheckpoint } = require("@sigstore/verify/dist/tlog/checkpoint.js");
const { verifyMerkleInclusion } = require("@sigstore/verify/dist/tlog/merkle.js");

const [name, keyId, key, leaf] = process.argv.slice(2);
const receipt = JSON.parse(fs.readFileSync(0, "utf8"));
const log = {
  logID: Buffer.from(keyId, "hex"),
  baseURL: `https://${name}`,
  // SubjectPublicKeyInfo of an Ed25519 key (RFC 8410): a fixed head, then the key
  publicKey: crypto.createPublicKey({
    key: Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), Buffer.from(key, "hex")]),
    format: "der",
    type: "spki",
  }),
};
const entry = {
  canonicalizedBody: Buffer.from(leaf, "hex"),
  inclusionProof: {
    logIndex: String(receipt.leaf_index),
    treeSize: String(receipt.tree_size),
    hashes: receipt.inclusion_proof.map((hash) => Buffer.from(hash, "hex")),
    checkpoint: { envelope: receipt.checkpoint },
  },
};
const checkpoint = verifyCheckpoint(entry, [log]);
verifyMerkleInclusion(entry, checkpoint);
console.log(`leaf ${receipt.leaf_index} is in the tree of ${checkpoint.logSize}`);
