"""What Redis does in one step, in Lua. Times are the server's own.

    {ns}:v:KEY    an envelope, expires by itself
    {ns}:order    zset of storage keys by end of life in ms       {ns}:sizes  hash: bytes of each
    {ns}:bytes    their sum                                       {ns}:t:TAG  zset of storage keys by end of life
    {ns}:l:KEY    a lease: who computes it, expires by itself
    {ns}:epoch    number of the last invalidation                 {ns}:log    zset of the last ones by number

All names share the part in braces, so that a cluster keeps them on one node.
"""

_DROP = """
local function drop(key)
  redis.call('DEL', KEYS[1] .. key)
  redis.call('ZREM', KEYS[2], key)
  local size = redis.call('HGET', KEYS[3], key)
  if size then
    redis.call('HDEL', KEYS[3], key)
    redis.call('DECRBY', KEYS[4], size)
    return 1
  end
  return 0
end
"""

# KEYS: value prefix, order, sizes, bytes, epoch, tag zsets...
# ARGV: key, envelope, ms to live, epoch when its making began ("": unknown), budget in bytes (0: none)
# Returns {1, entries, bytes}, or {0, epoch}: there were invalidations in between, nothing is stored.
PUT = (
    _DROP
    + """
local epoch = redis.call('GET', KEYS[5]) or '0'
if ARGV[4] ~= '' and ARGV[4] ~= epoch then return {0, tonumber(epoch)} end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 20)) do drop(key) end
local budget, size, ends = tonumber(ARGV[5]), #ARGV[2] + 200, now + ARGV[3]
drop(ARGV[1])
if budget > 0 and size > budget then
  return {1, redis.call('ZCARD', KEYS[2]), tonumber(redis.call('GET', KEYS[4]) or 0)}
end
local total = redis.call('INCRBY', KEYS[4], size)
if total < size then redis.call('SET', KEYS[4], size) total = size end
if budget > 0 then
  while total > budget do
    local first = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
    if not first then redis.call('SET', KEYS[4], size) break end
    drop(first)
    total = tonumber(redis.call('GET', KEYS[4]))
  end
end
redis.call('SET', KEYS[1] .. ARGV[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[2], ends, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], size)
for i = 6, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  redis.call('ZADD', KEYS[i], ends, ARGV[1])
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
end
return {1, redis.call('ZCARD', KEYS[2]), tonumber(redis.call('GET', KEYS[4]) or 0)}
"""
)

# KEYS: value prefix, order, sizes, bytes. ARGV: keys. Returns how many there were.
DROP = (
    _DROP
    + """
local count = 0
for _, key in ipairs(ARGV) do count = count + drop(key) end
return count
"""
)

# KEYS: epoch, log. ARGV: selection, most kept. Returns the new epoch. Published once what it means is deleted.
ANNOUNCE = """
local epoch = redis.call('INCR', KEYS[1])
redis.call('ZADD', KEYS[2], epoch, string.format('%016d', epoch) .. ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - tonumber(ARGV[2]))
return epoch
"""

# KEYS: lease, epoch. ARGV: token, ms. Returns {1 or 0, epoch}.
LEASE = """
local taken = redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
return {taken and 1 or 0, tonumber(redis.call('GET', KEYS[2]) or 0)}
"""

# KEYS: lease. ARGV: token. Only its holder may give it back: it may have expired and be another's by now.
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS: lease. ARGV: token, ms.
RENEW = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
NUMBER_BYTES = 16  # an epoch in front of a selection
