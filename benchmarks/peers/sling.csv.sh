# sling
"$SLING" run --src-stream "file://$CSV" \
    --tgt-conn "$TARGET_URL?sslmode=disable" --tgt-object public.orders --mode full-refresh
