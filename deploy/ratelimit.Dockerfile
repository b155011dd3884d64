# An image that takes the place of envoyproxy/ratelimit's: the same program's path, the same variables.
FROM python:3.11-slim
COPY dist/sidecar-*.whl /tmp/
RUN pip install --no-cache-dir /tmp/sidecar-*.whl \
  && printf '#!/bin/sh\nexec sidecar ratelimit "$@"\n' > /bin/ratelimit \
  && chmod 755 /bin/ratelimit \
  && rm /tmp/sidecar-*.whl
USER 65532:65532
EXPOSE 8080 8081 6070
ENTRYPOINT ["/bin/ratelimit"]
