#!/bin/sh
# Makes the golden files of format version 3 of circuits, and of version 2 of bundles and keys, in the current folder, with the `thex` of the commit that
# added them (0.1.0):
#
#   cd tests/golden/v3 && THEX=../../../target/release/thex ./make.sh
#
# As in v1: append-only, not run again, keys from seed 1 that protect nothing. Ciphertexts still have version 1.
set -eu
exports=../../models/exports
mkdir -p grouped
# Rotations by pairs of key bits, some of them extended.
"$THEX" compile $exports/attention_operator_op23.onnx --calibration $exports/attention_operator_op23.npz --profile the-x \
    --output-error 0.05 -x select-parameters:most-cost=3 -o grouped/m
"$THEX" keygen grouped/m.client -o grouped/keys --seed 1
"$THEX" encrypt grouped/m.client --key grouped/keys/client.key --input $exports/attention_operator_op23.npz -o grouped/in.ct
"$THEX" run grouped/m.circuit --key grouped/keys/server.key --input grouped/in.ct -o grouped/out.ct
"$THEX" decrypt grouped/m.client --key grouped/keys/client.key --input grouped/out.ct --json > grouped/expected.json
mv grouped/keys/client.key grouped/client.key
rm -r grouped/keys grouped/m.report.json grouped/m.graph grouped/out.ct
