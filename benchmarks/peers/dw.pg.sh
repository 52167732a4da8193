# dw
"$DW_BIN/dw" -C "$DW_PROJECT" run shop.orders --json --progress none
