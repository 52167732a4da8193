# ingestr
"$PEERS_BIN/ingestr" ingest --yes --source-uri "$SOURCE_URL?sslmode=disable" --source-table public.orders \
    --dest-uri "$TARGET_URL?sslmode=disable" --dest-table public.orders
