# An image of pglock alone: `make image`, or after `make static notices` with any builder of images:
#
#     docker build -t pglock .
#
# Images of jobs take it from there: COPY --from=pglock /usr/bin/pglock /usr/bin/pglock
FROM scratch
COPY target/static/pglock /usr/bin/pglock
COPY target/static/NOTICES LICENSE /usr/share/doc/pglock/
ENTRYPOINT ["/usr/bin/pglock"]
