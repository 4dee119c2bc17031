"""Visitors at a steady rate, and what they got. Every tenth is an enterprise customer.

    python visitors.py HOST:PORT RATE SECONDS
"""

import collections
import http.client
import sys
import time

address, rate, seconds = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
connection = http.client.HTTPConnection(address, timeout=10)
got = collections.Counter()
begun = time.monotonic()

try:
    for number in range(int(rate * seconds)):
        time.sleep(max(0, begun + number / rate - time.monotonic()))
        plan = "enterprise" if number % 10 == 0 else "free"
        try:
            connection.request("GET", "/", headers={"X-Plan": plan})
            response = connection.getresponse()
            said = response.read().decode().strip()
            got[f"{plan}: {response.status} {said}"] += 1
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            got[f"{plan}: {error!r}"] += 1
except KeyboardInterrupt:
    pass

for answer, count in sorted(got.items()):
    print(f"{count:7}  {answer}")
