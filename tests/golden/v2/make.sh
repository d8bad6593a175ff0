#!/bin/sh
# Makes the golden files of format version 2 of circuits in the current folder, with the `thex` of the commit that added them (0.1.0):
#
#   cd tests/golden/v2 && THEX=../../../target/release/thex ./make.sh
#
# As in v1: append-only, not run again, keys from seed 1 that protect nothing. Bundles, keys and ciphertexts still have version 1.
set -eu
exports=../../models/exports
mkdir -p extended
# Look-ups of extensions.
"$THEX" compile $exports/attention_operator_op23.onnx --calibration $exports/attention_operator_op23.npz --profile the-x \
    --output-error 0.02 -x select-parameters:most-cost=3 -o extended/m
"$THEX" keygen extended/m.client -o extended/keys --seed 1
"$THEX" encrypt extended/m.client --key extended/keys/client.key --input $exports/attention_operator_op23.npz -o extended/in.ct
"$THEX" run extended/m.circuit --key extended/keys/server.key --input extended/in.ct -o extended/out.ct
"$THEX" decrypt extended/m.client --key extended/keys/client.key --input extended/out.ct --json > extended/expected.json
mv extended/keys/client.key extended/client.key
rm -r extended/keys extended/m.report.json extended/m.graph extended/out.ct
