// The Solidity compiler on standard JSON: input on stdin, output on stdout.
// SPDX-License-Identifier: Apache-2.0
const fs = require("fs");
const solc = require("solc");
process.stdout.write(solc.compile(fs.readFileSync(0, "utf8")));
