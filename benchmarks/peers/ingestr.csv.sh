# ingestr
"$PEERS_BIN/ingestr" ingest --yes --source-uri "csv://$CSV" --source-table orders \
    --dest-uri "$TARGET_URL?sslmode=disable" --dest-table public.orders
