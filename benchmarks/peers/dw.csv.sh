# dw
"$DW_BIN/dw" -C "$DW_PROJECT" run files.orders --json --progress none
