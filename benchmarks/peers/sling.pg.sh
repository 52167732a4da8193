# sling
"$SLING" run --src-conn "$SOURCE_URL?sslmode=disable" --src-stream public.orders \
    --tgt-conn "$TARGET_URL?sslmode=disable" --tgt-object public.orders --mode full-refresh
